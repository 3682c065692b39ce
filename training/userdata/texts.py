"""Captions as a UNet reads them: states of one text encoder, or, of SDXL's two, states and a pooled text."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTokenizer

from bolid_training.data import process_state
from bolid_training.model.base import Base, TextTower
from bolid_training.stages.clip import tokenize


class TextReader:
    """Captions -> float32 `encoder_hidden_states` [n, 77, C] and, of SDXL, `text_embeds` [n, P].

    Where the folder says so, no text is zeros. The networks are read when they are first used, and go with the object.
    """

    def __init__(self, base: Base):
        self.base, self.device = base, process_state().device

    @cached_property
    def towers(self) -> list[TextTower]:
        return [tower.to(self.device) for tower in self.base.text_encoders()]

    @cached_property
    def tokenizers(self) -> list[CLIPTokenizer]:
        return self.base.tokenizers()

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> dict[str, Tensor]:
        told = read_ids(self.towers, [tokenize(each, captions).to(self.device) for each in self.tokenizers])
        if self.base.zero_unconditional:
            empty = torch.tensor([not caption for caption in captions])
            for values in told.values():
                values[empty] = 0
        return told


def read_ids(towers: Sequence[TextTower], ids: Sequence[Tensor]) -> dict[str, Tensor]:
    """What UNets have learned to read of int64 ids [n, 77], one for each tower.

    One tower: its last states, after the final norm. Two: their last states but one, side by side, and the second one's
    projected text (diffusers' `StableDiffusionXLPipeline.encode_prompt`).
    """
    if len(towers) == 1:
        return {"encoder_hidden_states": towers[0](ids[0])[0]}
    first, second = (tower(each, output_hidden_states=True) for tower, each in zip(towers, ids, strict=True))
    states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
    return {"encoder_hidden_states": states, "text_embeds": second.text_embeds}


def as_records(told: dict[str, Tensor]) -> NDArray[np.void]:
    """[n] records with a float16 field for each of the tensors [n, ...]: one array, so that one file keeps them."""
    columns = {name: values.half().cpu().numpy() for name, values in told.items()}
    fields = [(name, column.dtype, column.shape[1:]) for name, column in columns.items()]
    records = np.empty(len(next(iter(columns.values()))), fields)
    for name, column in columns.items():
        records[name] = column
    return records
