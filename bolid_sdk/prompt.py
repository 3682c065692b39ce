"""From a prompt to token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from bolid_sdk.clip_tokenizer import ClipTokenizer
from bolid_sdk.errors import Notice, PromptError

TokenIds: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizedPrompt:
    """`ids` int64 [length], with start, end and padding; `notices` says what did not fit."""

    ids: TokenIds
    notices: tuple[Notice, ...]


class PromptTokenizer:
    """CLIP's `tokenizer.json` at a fixed length. Raises BundleError when the file is none."""

    def __init__(self, path: Path, *, length: int, pad_id: int) -> None:
        self._tokenizer = ClipTokenizer(path)
        self._length, self._pad_id = length, pad_id

    def __call__(self, prompt: str) -> TokenizedPrompt:
        """Encodes any text, the empty one too (the unconditional prompt)."""
        text = self._tokenizer.encode(prompt)
        room = self._length - 2
        encoded = [self._tokenizer.start, *text[:room], self._tokenizer.end]
        ids = np.full(self._length, self._pad_id, np.int64)
        ids[: len(encoded)] = encoded
        return TokenizedPrompt(ids=ids, notices=self._notices(text[room:]))

    def _notices(self, lost: Sequence[int]) -> tuple[Notice, ...]:
        if not lost:
            return ()
        text = self._tokenizer.decode(lost)
        message = f"the prompt is longer than {self._length} tokens; this was left out: {text!r}"
        return (Notice(code="prompt_truncated", message=message),)


def check_prompt(prompt: object) -> str:
    """Raises PromptError unless `prompt` is text that says something."""
    if not isinstance(prompt, str):
        raise PromptError(f"a prompt of type {type(prompt).__name__} was given; expected text")
    if not prompt.strip():
        raise PromptError("the prompt is empty; say what the picture should show, for example 'sitting on a sofa'")
    if "\0" in prompt:
        raise PromptError("the prompt contains a NUL character; expected plain text")
    if any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise PromptError(f"the prompt {prompt!r} contains characters that are no Unicode; expected plain text")
    return prompt
