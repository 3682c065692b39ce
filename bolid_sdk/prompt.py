"""From a prompt to token ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from bolid_sdk.errors import BundleError, Notice, PromptError

TokenIds: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenizedPrompt:
    """`ids` int64 [length], with start, end and padding; `notices` says what did not fit."""

    ids: TokenIds
    notices: tuple[Notice, ...]


class PromptTokenizer:
    """A `tokenizer.json` at a fixed length. Raises BundleError when the file cannot be read."""

    def __init__(self, path: Path, *, length: int, pad_id: int) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
        # The Rust library raises bare Exception.
        except Exception as error:
            raise BundleError(f"{path} is no tokenizer ({error}); export the bundle again") from error
        self._tokenizer.enable_truncation(length)
        self._tokenizer.no_padding()
        self._length, self._pad_id = length, pad_id

    def __call__(self, prompt: str) -> TokenizedPrompt:
        """Encodes any text, the empty one too (the unconditional prompt)."""
        encoding = self._tokenizer.encode(prompt)
        ids = np.full(self._length, self._pad_id, np.int64)
        ids[: len(encoding.ids)] = encoding.ids
        return TokenizedPrompt(ids=ids, notices=self._notices(encoding))

    def _notices(self, encoding: Any) -> tuple[Notice, ...]:
        if not encoding.overflowing:
            return ()
        lost = " ".join(self._tokenizer.decode(part.ids) for part in encoding.overflowing)
        message = f"the prompt is longer than {self._length} tokens; this was left out: {lost!r}"
        return (Notice(code="prompt_truncated", message=message),)


def check_prompt(prompt: object) -> str:
    """Raises PromptError unless `prompt` is text that says something."""
    if not isinstance(prompt, str):
        raise PromptError(f"a prompt of type {type(prompt).__name__} was given; expected text")
    if not prompt.strip():
        raise PromptError("the prompt is empty; say what the picture should show, for example 'sitting on a sofa'")
    if "\0" in prompt:
        raise PromptError("the prompt contains a NUL character; expected plain text")
    return prompt
