"""A bundle: a folder with a manifest and the files it lists. Opened read-only, written whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath

from bolid_sdk.built_engine import EngineFile
from bolid_sdk.errors import BundleError
from bolid_sdk.files import atomic_folder
from bolid_sdk.manifest import FileEntry, Manifest

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 64 * 1024 * 1024
IDENTITY_GRAPHS = ("image_encoder", "identity_encoder")


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle. `digest` is the sha256 of its manifest, and so of everything in it."""

    path: Path
    manifest: Manifest
    digest: str

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Checks schema, signatures, and each file's presence, place and size. Raises BundleError.

        Contents are checked by `verify_hashes`, which reads every byte.
        """
        bundle = cls.read(path)
        for name in bundle.manifest.files:
            bundle.check_file(name)
        return bundle

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Bundle:
        """As `open`, but looks at nothing but the manifest: for those who want to know of every damaged file."""
        folder = Path(path)
        content = _read_manifest(folder)
        try:
            values = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise BundleError(
                f"{folder / MANIFEST_NAME} is not valid JSON ({error}); export the bundle again"
            ) from error
        return cls(path=folder, manifest=Manifest.from_dict(values), digest=hashlib.sha256(content).hexdigest())

    def file(self, name: str) -> Path:
        """The path of a file listed in the manifest."""
        return self.path / PurePosixPath(name)

    def engine_files(self, graph: str) -> dict[str, EngineFile]:
        """The engines that were built from a graph, by the backend that they are for."""
        built = self.manifest.graphs[graph].engines
        return {
            backend: EngineFile(
                path=self.file(engine.file), sha256=self.manifest.files[engine.file].sha256, key=engine.key
            )
            for backend, engine in built.items()
        }

    def verify_hashes(self) -> None:
        """Reads every file and compares its sha256 with the manifest. Raises BundleError for the first that differs."""
        with ThreadPoolExecutor() as threads:
            for _ in threads.map(self.check_hash, self.manifest.files):
                pass

    def check_hash(self, name: str) -> None:
        """Reads one file. Raises BundleError when its sha256 is not the manifest's."""
        expected, found = self.manifest.files[name].sha256, file_sha256(self.file(name))
        if found != expected:
            raise BundleError(
                f"{self.file(name)} has sha256 {found[:16]}…, the manifest says {expected[:16]}…: the file was "
                "changed after export; copy or export the bundle again"
            )

    @cached_property
    def identity_digest(self) -> str:
        """sha256 over what identity tokens depend on: bundles that share it can share identities."""
        manifest = self.manifest
        graphs = [manifest.graphs[name] for name in IDENTITY_GRAPHS if name in manifest.graphs]
        files = [name for graph in graphs for name in graph.files]
        parts = [*(manifest.files[name].sha256 for name in files), str(manifest.image_mean), str(manifest.image_std)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def check_file(self, name: str) -> None:
        """Presence, place and size of a file. Raises BundleError."""
        path, entry = self.file(name), self.manifest.files[name]
        if not path.is_file():
            raise BundleError(f"{path} is missing; copy or export the bundle again")
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise BundleError(f"{path} is a link out of the bundle's folder; every file has to lie inside it")
        size = path.stat().st_size
        if size != entry.bytes:
            raise BundleError(
                f"{path} has {size:,} bytes, the manifest says {entry.bytes:,}: the file was truncated or replaced; "
                "copy or export the bundle again"
            )


def write_bundle(
    path: str | os.PathLike[str],
    manifest: Manifest,
    files: Mapping[str, Path],
    *,
    overwrite: bool = False,
    link: bool = False,
) -> Bundle:
    """Copies `files` (name in the bundle -> where it is now) and writes the manifest, whole or not at all.

    `manifest.files` is filled in here. The result is opened, hence checked, before it takes its place. `link`: hard
    links instead of copies where the file system has them, for files that are given up afterwards. Raises BundleError
    and OutputError.
    """
    target, place = Path(path), _link if link else shutil.copyfile
    with atomic_folder(target, overwrite=overwrite) as folder, ThreadPoolExecutor() as threads:
        put = partial(_put, place)
        names = sorted(files)
        entries = threads.map(put, [files[name] for name in names], [folder / PurePosixPath(name) for name in names])
        complete = replace(manifest, files=dict(zip(names, entries, strict=True)))
        text = json.dumps(complete.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        (folder / MANIFEST_NAME).write_text(text + "\n", encoding="utf-8")
        Bundle.open(folder)
    return Bundle.open(target)


def default_bundle_path() -> Path | None:
    """The embedded avatar bundle of the installed `bolid_engines` package, or None."""
    spec = importlib.util.find_spec("bolid_engines")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "avatar"
        if (path / MANIFEST_NAME).is_file():
            return path
    return None


def open_bundle(path: str | os.PathLike[str] | None = None) -> Bundle:
    """Opens `path`, or the embedded bundle. Raises BundleError."""
    chosen = path if path is not None else default_bundle_path()
    if chosen is None:
        raise BundleError("no bundle was given and none is embedded in this installation; pass the folder of one")
    return Bundle.open(chosen)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_manifest(folder: Path) -> bytes:
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise BundleError(f"no such bundle: {folder}; expected a folder with a {MANIFEST_NAME}")
    if not path.is_file():
        raise BundleError(f"{folder} is no bundle: it has no {MANIFEST_NAME}; make one with bolid-export")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path} has {path.stat().st_size:,} bytes; a manifest has at most {MAX_MANIFEST_BYTES:,}")
    return path.read_bytes()


def _put(place: Callable[[Path, Path], object], source: Path, target: Path) -> FileEntry:
    target.parent.mkdir(parents=True, exist_ok=True)
    place(source, target)
    return FileEntry(bytes=target.stat().st_size, sha256=file_sha256(target))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
