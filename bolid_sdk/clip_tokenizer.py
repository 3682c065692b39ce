"""CLIP's tokenizer, from its `tokenizer.json`.

The tokenizers library reads the same files, and brings 40 MB of packages that nothing else here needs. Ids are the
library's; a character that is younger than the Unicode of either (Python's, or the library's, whose combining marks are
those of about 2016) may be split or ordered differently.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from bolid_sdk.byte_pairs import BYTE_LETTERS, Pair, merge, token_bytes
from bolid_sdk.errors import BundleError

KEPT_WORDS = 4096
END_OF_WORD = "</w>"
SPACES = re.compile(r"[^\S\x1c-\x1f]+")
"""Unicode's White_Space: Python takes four control characters more for space."""
CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
SPECIALS = r"<\|startoftext\|>|<\|endoftext\|>"
CLIP_PATTERN = rf"{SPECIALS}|{CONTRACTIONS}|[\p{{L}}]+|[\p{{N}}]|[^\s\p{{L}}\p{{N}}]+"
RUN = re.compile("L+|N|O+|S+")
"""The end of that pattern, for `_kind` of each character: `re` knows no categories."""

UNDERSTOOD: dict[str, Any] = {
    "model": {
        "type": "BPE",
        "dropout": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": END_OF_WORD,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
    },
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ],
    },
    "pre_tokenizer": {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": CLIP_PATTERN}, "behavior": "Removed", "invert": True},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        ],
    },
    "post_processor": {"type": "RobertaProcessing"},
    "decoder": {"type": "ByteLevel"},
}
"""What a file must say. The rest is read, or is about offsets, padding and truncation."""
UNDERSTOOD_ADDED = {"single_word": False, "lstrip": False, "rstrip": False}


class ClipTokenizer:
    """Ids of a text, without the `start` and `end` that belong around them. Safe to share between threads.

    Raises BundleError for a file that cannot be read or describes another tokenizer.
    """

    start: int
    end: int

    def __init__(self, path: Path) -> None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            self._check(content, path)
            self._read(content)
        except (AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError) as error:
            raise BundleError(f"{path} is no tokenizer ({error!r}); export the bundle again") from error
        self._word_ids = lru_cache(KEPT_WORDS)(self._encode_word)

    def _check(self, content: dict[str, Any], path: Path) -> None:
        added = [_differences(token, UNDERSTOOD_ADDED, f"added token {token!r}") for token in content["added_tokens"]]
        for differences in (_differences(content, UNDERSTOOD, ""), *added):
            for where, found, expected in differences:
                raise BundleError(
                    f"{path} is not a tokenizer of CLIP's kind: its {where} is {found!r}, expected {expected!r}; "
                    "export a model with a CLIP text encoder and tokenizer"
                )

    def _read(self, content: dict[str, Any]) -> None:
        model, added, ends = content["model"], content["added_tokens"], content["post_processor"]
        self.start, self.end = int(ends["cls"][1]), int(ends["sep"][1])
        self._vocabulary: dict[str, int] = model["vocab"]
        self._unknown = self._vocabulary[model["unk_token"]]
        self._merges: dict[Pair, tuple[int, int]] = dict(_ranked(model["merges"], self._vocabulary))
        self._literal = {token["content"]: token["id"] for token in added if not token["normalized"]}
        self._normalized = {_normalize(token["content"]): token["id"] for token in added if token["normalized"]}
        self._literal_pattern, self._normalized_pattern = _any_of(self._literal), _any_of(self._normalized)
        self._tokens = {id_: token for token, id_ in self._vocabulary.items()}
        self._tokens |= {id_: content for content, id_ in (*self._literal.items(), *self._normalized.items())}
        self._special = {token["id"] for token in added if token["special"]}

    def encode(self, text: str) -> list[int]:
        """Of any text. As in the library, a special token that is spelled out in it is that token."""
        ids: list[int] = []
        for part, added in _parts(text, self._literal_pattern):
            ids += [self._literal[part]] if added else self._encode_normalized(_normalize(part))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Normalised text without special tokens; what is no UTF-8 becomes U+FFFD."""
        tokens = (self._tokens[id_] for id_ in ids if id_ not in self._special)
        return b"".join(map(token_bytes, tokens)).decode(errors="replace").replace(END_OF_WORD, " ").strip()

    def _encode_normalized(self, text: str) -> Iterator[int]:
        for part, added in _parts(text, self._normalized_pattern):
            if added:
                yield self._normalized[part]
            else:
                for word in _words(part):
                    yield from self._word_ids(word)

    def _encode_word(self, word: str) -> tuple[int, ...]:
        letters = [BYTE_LETTERS[byte] for byte in word.encode()]
        letters[-1] += END_OF_WORD
        return merge([self._vocabulary.get(letter, self._unknown) for letter in letters], self._merges)


def _differences(found: Any, expected: Any, where: str) -> Iterator[tuple[str, Any, Any]]:
    """Where, what was found and what was expected instead. None and an empty or false value mean the same here."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key, value in expected.items():
            yield from _differences(found.get(key), value, f"{where} {key}".strip())
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for index, value in enumerate(expected):
            yield from _differences(found[index], value, f"{where} {index + 1}")
    elif (found or None) != (expected or None):
        yield where, found, expected


def _ranked(merges: Iterable[str | list[str]], vocabulary: dict[str, int]) -> Iterator[tuple[Pair, tuple[int, int]]]:
    """Until 2024 the library wrote a pair as one text."""
    for rank, pair in enumerate(merges):
        first, second = pair.split(" ") if isinstance(pair, str) else pair
        yield (vocabulary[first], vocabulary[second]), (rank, vocabulary[first + second])


def _any_of(literals: Iterable[str]) -> re.Pattern[str]:
    """The longest wins, as in the library; without any, a pattern that nothing matches."""
    longest_first = sorted(literals, key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")


def _parts(text: str, added: re.Pattern[str]) -> Iterator[tuple[str, bool]]:
    """The text in pieces, and whether each is an added token."""
    for index, part in enumerate(added.split(text)):
        if part:
            yield part, index % 2 == 1


def _normalize(text: str) -> str:
    """Lowercase letter by letter: as a whole, Python would write a final sigma differently."""
    return "".join(map(str.lower, SPACES.sub(" ", unicodedata.normalize("NFC", text))))


def _words(text: str) -> Iterator[str]:
    """CLIP's pattern, and then the byte level's own, which takes a special token in other case apart again."""
    for word in _split(text, re.compile(f"{SPECIALS}|{CONTRACTIONS}")):
        yield from _split(word, re.compile(CONTRACTIONS))


def _split(text: str, entire: re.Pattern[str]) -> Iterator[str]:
    """Whatever `entire` matches, letters, single numbers and runs of all else; space is left out."""
    kinds = "".join(map(_kind, text))
    start = 0
    while start < len(text):
        match = entire.match(text, start) or RUN.match(kinds, start)
        assert match, "every character is of a kind"
        if kinds[start] != "S":
            yield text[start : match.end()]
        start = match.end()


def _kind(character: str) -> str:
    """L for letters, N for numbers, S for space, O for others."""
    category = unicodedata.category(character)[0]
    if category in "LN":
        return category
    return "S" if SPACES.match(character) else "O"
