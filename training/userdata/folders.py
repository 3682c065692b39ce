"""Captioned folders: a sub-folder for each person, and beside each picture a text; or Hugging Face's imagefolder.

    people/anna/1.jpg   people/anna/1.txt      "sitting on a red sofa"
    people/anna/2.jpg   people/anna/2.txt
    people/ben/…

or a `metadata.jsonl` with a line {"file_name": "anna/1.jpg", "text": "…"} for each picture ("caption" and "prompt" are
read, too; "identity" and "keypoints" may be given). Folders nest; the uppermost names the person.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from bolid_sdk.errors import InputError
from bolid_training.userdata.entries import Blob, Entry, Skipped

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif")
METADATA = "metadata.jsonl"
TEXTS = ("caption", "captions", "text", "prompt")


def folder_entries(root: Path) -> tuple[list[Entry], list[Skipped]]:
    """Every picture below `root`, sorted by name, and those that a `metadata.jsonl` names and that are not there.

    Raises InputError for a damaged `metadata.jsonl`.
    """
    files = [file for file in sorted(root.rglob("*")) if file.is_file() and not _hidden(file.relative_to(root))]
    told = {path: values for file in files if file.name == METADATA for path, values in _metadata(file)}
    pictures = [file for file in files if file.suffix.lower() in PICTURES]
    missing = [_missing(root, path) for path in told.keys() - set(pictures)]
    return [_entry(root, file, told.get(file, {})) for file in pictures], sorted(missing, key=lambda each: each.name)


def captions_of(values: dict) -> tuple[str, ...]:
    """The texts of a JSON object that names them as `TEXTS` does, without empty ones."""
    given = next((values[name] for name in TEXTS if values.get(name)), ())
    texts = [given] if isinstance(given, str) else given
    return tuple(text.strip() for text in texts if isinstance(text, str) and text.strip())


def identity_of(values: dict, otherwise: str) -> str:
    """Whom a JSON object says is seen; null says nobody in particular."""
    identity = values.get("identity")
    return otherwise if identity is None else str(identity)


def _entry(root: Path, file: Path, values: dict) -> Entry:
    place = file.relative_to(root)
    # a picture that lies beside the folders is of somebody of whom there is no other
    folder = place.parts[0] if len(place.parts) > 1 else f"{place.stem} (alone)"
    return Entry(
        name=place.as_posix(),
        identity=identity_of(values, folder),
        captions=captions_of(values) or _beside(file.with_suffix(".txt")),
        picture=Blob(path=file),
        keypoints=values.get("keypoints"),
    )


def _missing(root: Path, path: Path) -> Skipped:
    name = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    return Skipped(name=name, reason=f"{METADATA} names it, but there is no such picture ({', '.join(PICTURES)})")


def _beside(file: Path) -> tuple[str, ...]:
    """A line is a caption; several are alternatives."""
    if not file.is_file():
        return ()
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return tuple(line.strip() for line in lines if line.strip())


def _metadata(file: Path) -> Iterator[tuple[Path, dict]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 ({error}); save it in that encoding") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            yield file.parent / values["file_name"], values
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f'{file}, line {number}: expected a JSON object with "file_name" and "text", '
                f"found {line[:60]!r} ({error})"
            ) from None


def _hidden(place: Path) -> bool:
    return any(part.startswith(".") for part in place.parts)
