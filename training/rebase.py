"""An adapter goes along when its base goes on.

What began as a copy of the base moves by as much as the base has moved since, as a task vector is added
(arXiv:2212.04089): keys and values of the branches by the text's, the pose guider by the base's, an IdentityNet by the
UNet's encoder. Resamplers and LoRAs stay.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from bolid_training.model.lightning import LORA_FILE

WEIGHTS = "diffusion_pytorch_model.safetensors"
BRANCHES = ("identity.safetensors", "image_prompt.safetensors")


def rebase(trained: Path, out: Path, before: Path, after: Path) -> None:
    """Copies `trained`, an adapter or a few-step student with one, to `out`, moved from base `before` to base `after`.

    Bases are `model` folders of `stage unet`. Raises FileNotFoundError for folders that are none of these,
    FileExistsError for an `out` that exists, ValueError for bases of different sizes.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists; name a folder that does not")
    inside = "adapter" if (trained / LORA_FILE).is_file() else ""
    for file in (before / WEIGHTS, after / WEIGHTS, *(trained / inside / branch for branch in BRANCHES)):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing: expected an adapter and two bases, as `bolid-train stage` leaves them"
            )
    unet = _difference(before / WEIGHTS, after / WEIGHTS)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        shutil.copytree(trained, copy := Path(scratch) / out.name)
        adapter, moves = copy / inside, branch_moves(unet, _cross_attention(before))
        for branch in BRANCHES:
            _move(adapter / branch, moves)
        if (adapter / "pose_guider").is_dir():
            guiders = (base / "pose_guider" / WEIGHTS for base in (before, after))
            _move(adapter / "pose_guider" / WEIGHTS, _difference(*guiders))
        if (adapter / "identity_net").is_dir():
            _move(adapter / "identity_net" / WEIGHTS, unet)
        copy.rename(out)


def branch_moves(unet: Mapping[str, Tensor], layers: list[str]) -> dict[str, Tensor]:
    """How far the text's keys and values have moved, by IP-Adapter's names of a branch's."""
    return {
        f"ip_adapter.{2 * index + 1}.to_{kind}_ip.weight": unet[f"{layer}.to_{kind}.weight"]
        for index, layer in enumerate(layers)
        for kind in "kv"
    }


def _cross_attention(base: Path) -> list[str]:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(base))
    names = (name.removesuffix(".processor") for name in unet.attn_processors)
    return [name for name in names if name.endswith("attn2")]


def _difference(before: Path, after: Path) -> dict[str, Tensor]:
    old, new = load_file(before), load_file(after)
    if {name: t.shape for name, t in old.items()} != {name: t.shape for name, t in new.items()}:
        raise ValueError(f"{before} and {after} are not of one size: an adapter fits the base that it was trained on")
    return {name: new[name].float() - old[name].float() for name in old}


def _move(file: Path, moves: Mapping[str, Tensor]) -> None:
    """Adds `moves` to the tensors of the file that have their names."""
    state = load_file(file)
    moved = {name: (state[name].float() + moves[name]).to(state[name].dtype) for name in state.keys() & moves.keys()}
    # not over the file that the tensors may still be read from
    save_file(state | moved, beside := file.with_suffix(".moved"))
    beside.replace(file)
