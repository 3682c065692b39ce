"""Byte-pair encoding of a word: its bytes as letters, and merges of neighbours (Sennrich et al., arXiv:1508.07909)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise
from typing import TypeAlias

Pair: TypeAlias = tuple[int | None, int | None]
Merges: TypeAlias = Mapping[Pair, tuple[int, int]]
"""By the ids of two neighbours: the rank of their merge, the lowest first, and the id that it gives."""


def _byte_letters() -> list[str]:
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


BYTE_LETTERS = _byte_letters()
"""GPT-2's letter of each byte: printable ones stand for themselves."""
LETTER_BYTES = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}


def token_bytes(token: str) -> bytes:
    """The inverse of the letters; a token that is not made of them is its own UTF-8."""
    if all(letter in LETTER_BYTES for letter in token):
        return bytes(LETTER_BYTES[letter] for letter in token)
    return token.encode()


def merge(letters: Sequence[int], merges: Merges) -> tuple[int, ...]:
    """The lowest rank first, and of equal ones the leftmost, until no merge applies: O(n log n).

    `letters` are the ids of single letters, as are those of the result of what they were merged into.
    """
    count = len(letters)
    ids: list[int | None] = [*letters, None]  # the None stands at both ends: no merge has it
    after, before = list(range(1, count + 2)), list(range(-1, count))
    queue = [(merges[pair][0], left, pair) for left, pair in enumerate(pairwise(ids)) if pair in merges]
    heapify(queue)
    while queue:
        _, left, pair = heappop(queue)
        right = after[left]
        if (ids[left], ids[right]) != pair:
            continue  # one of the two has been merged meanwhile
        ids[left], ids[right] = merges[pair][1], None
        after[left] = after[right]
        before[after[left]] = left
        for first, second in ((before[left], left), (left, after[left])):
            new = (ids[first], ids[second])
            if new in merges:
                heappush(queue, (merges[new][0], first, new))
    return tuple(id_ for id_ in ids if id_ is not None)
