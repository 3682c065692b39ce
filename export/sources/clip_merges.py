"""CLIP's tokenizer, for files that hold none: all of Stable Diffusion's text towers read by it."""

from __future__ import annotations

import gzip
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

MERGES = Path(__file__).parent / "sd15" / "tokenizer" / "merges.txt.gz"
END = "<|endoftext|>"
SPECIALS = ("<|startoftext|>", END)


def clip_tokenizer(pad_token: str = END) -> CLIPTokenizer:
    """CLIP's byte-level BPE from its published list of merges; OpenCLIP's towers pad with "!", which is id 0."""
    with gzip.open(MERGES, "rt", encoding="utf-8") as file:
        merges = [tuple(line.split()) for line in file]
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(merge) for merge in merges), *SPECIALS]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77, pad_token=pad_token)
