"""Networks of a file in the original layout (CompVis', Stability's and kohya's): where they are, and their weights.

diffusers knows the names. What it cannot place it leaves out, so here every key has to have a place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from accelerate import init_empty_weights
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from bolid_export.sources.families import STABLE_DIFFUSION, STABLE_DIFFUSION_XL
from bolid_export.sources.files import require_no_differences
from bolid_export.sources.stored import tensors_dtype
from bolid_sdk.errors import InputError

State = dict[str, Tensor]

V_PREDICTION, ZERO_SNR = "v_pred", "ztsnr"
"""Keys of no weights, which say how a model was trained."""

# What training leaves in a file and no picture needs: averages of weights, what can be counted, CLIP's temperature, the
# noise schedule's numbers, and the projection of a tower whose last hidden states alone are read.
IGNORED = re.compile(
    rf"model_ema\..+|(.+\.)?(position_ids|logit_scale)|{V_PREDICTION}|{ZERO_SNR}"
    r"|betas|(\w+_)?alphas_cumprod(_prev)?|posterior_\w+|lvlb_weights|logvar|denoiser\.sigmas"
    r"|(cond_stage_model|conditioner\.embedders\.0)\.(transformer\.)?text_projection(\.weight)?"
)

# These are cut or turned, hence copied; all others keep their place in memory.
COPIED = ("in_proj_weight", "in_proj_bias", "text_projection")


@dataclass(frozen=True, kw_only=True)
class Part:
    """A network of a file: its keys start with `prefix`, `convert` gives them the names of `network`."""

    network: type[nn.Module]
    prefix: str
    convert: Callable[[State, Any], State]


def _open_clip(state: State, config: Any) -> State:
    return convert_open_clip_checkpoint(SimpleNamespace(config=config), state, OPEN_CLIP)


def _clip(state: State, config: Any) -> State:
    return convert_ldm_clip_checkpoint(state)


OPEN_CLIP = "conditioner.embedders.1.model."
UNET = Part(network=UNet2DConditionModel, prefix="model.diffusion_model.", convert=convert_ldm_unet_checkpoint)
VAE = Part(network=AutoencoderKL, prefix="first_stage_model.", convert=convert_ldm_vae_checkpoint)

PARTS: dict[str, dict[str, Part]] = {
    STABLE_DIFFUSION: {
        "unet": UNET,
        "vae": VAE,
        "text_encoder": Part(network=CLIPTextModel, prefix="cond_stage_model.transformer.", convert=_clip),
    },
    STABLE_DIFFUSION_XL: {
        "unet": UNET,
        "vae": VAE,
        "text_encoder": Part(network=CLIPTextModel, prefix="conditioner.embedders.0.transformer.", convert=_clip),
        "text_encoder_2": Part(network=CLIPTextModelWithProjection, prefix=OPEN_CLIP, convert=_open_clip),
    },
}


def read_networks(path: Path, family: str, config: Path) -> dict[str, nn.Module]:
    """Each network of a family with its weights, in eval mode; `config` has a folder with the configuration of each.

    Weights are mapped into memory where they stay as they are stored (`stored`). Raises InputError that lists what is
    missing, by the networks' names, and what has no place, by the file's; RuntimeError for other shapes.
    """
    state = {name: tensor for name, tensor in load_file(path).items() if not IGNORED.fullmatch(name)}
    parts = PARTS[family]
    networks = {name: empty_network(part.network, config / name) for name, part in parts.items()}
    weights = {name: weights_of(state, part, networks[name], path) for name, part in parts.items()}
    expected = [f"{name}.{key}" for name, network in networks.items() for key in network.state_dict()]
    found = {f"{name}.{key}" for name, converted in weights.items() for key in converted}
    missing = [key for key in expected if key not in found]
    require_no_differences(path, f"a {family} model", missing, _unplaced(state, weights.values()))
    for name, network in networks.items():
        dtype = tensors_dtype(weights[name].values())
        converted = {key: tensor.to(dtype) for key, tensor in weights[name].items()}
        network.load_state_dict(converted, assign=True)
        network.eval().requires_grad_(False)
    return networks


def empty_network(network: type[nn.Module], config: Path) -> nn.Module:
    """As its configuration says, without memory for weights."""
    with init_empty_weights():
        if issubclass(network, ModelMixin):
            return network.from_config(network.load_config(config))
        return network(network.config_class.from_pretrained(config))


def weights_of(state: State, part: Part, network: nn.Module, path: Path) -> State:
    """What a file's `state` has for `network`, by the network's names. Raises InputError."""
    own = {name: tensor for name, tensor in state.items() if name.startswith(part.prefix)}
    try:
        converted = part.convert(own, network.config)
    except KeyError as error:
        raise InputError(f"{path} lacks {part.prefix}{error.args[0]}") from error
    # transformers' text towers have lost this level, those with a projection have not
    if not hasattr(network, "text_model"):
        converted = {name.removeprefix("text_model."): tensor for name, tensor in converted.items()}
    names = network.state_dict()
    return {name: tensor for name, tensor in converted.items() if name in names and tensor is not None}


def _unplaced(state: State, weights: Iterable[State]) -> list[str]:
    """Keys of a file that none of the networks has taken."""
    placed = {tensor.data_ptr() for converted in weights for tensor in converted.values()}
    return [name for name, tensor in state.items() if tensor.data_ptr() not in placed and not name.endswith(COPIED)]
