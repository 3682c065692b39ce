"""Every name that published LoRA files have for a layer of a diffusers model.

    diffusers   unet.down_blocks.0.attentions.0.proj_in, and in older files ...attn1.processor.to_q or ...attn1.to_out
    PEFT        base_model.model.down_blocks.0.attentions.0.proj_in
    kohya       lora_unet_down_blocks_0_attentions_0_proj_in, and for SDXL lora_unet_input_blocks_1_1_proj_in

Kohya's names are looked up, not taken apart: an underscore may have been a dot or an underscore.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

UNET, TEXT_ENCODER, TEXT_ENCODER_2 = "unet", "text_encoder", "text_encoder_2"
"""A layer's name is its path in the pipeline: network, dot, path in the network."""

OUTER = "text_model."
"""Outer module of CLIP's text encoder, which newer versions of transformers no longer have."""

KOHYA = {
    UNET: ("lora_unet_",),
    TEXT_ENCODER: ("lora_te_text_model_", "lora_te1_text_model_"),
    TEXT_ENCODER_2: ("lora_te2_text_model_",),
}

OLDER = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out", "to_out.0": "to_out"}
"""Ends of names, and what they were in diffusers' first files."""

LAYER = re.compile(r"(?P<block>down|up)_blocks\.(?P<b>\d+)\.(?P<kind>attentions|resnets)\.(?P<l>\d+)\.(?P<rest>.+)")
SAMPLER = re.compile(r"(?P<block>down|up)_blocks\.(?P<b>\d+)\.(?:down|up)samplers\.0\.conv")
MIDDLE = re.compile(r"mid_block\.(?P<kind>attentions|resnets)\.(?P<l>\d+)\.(?P<rest>.+)")

RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}


def names_in_files(layers: Iterable[str]) -> dict[str, str]:
    """Layers (network.path) by every name that a file may have for them; bare paths mean the first network."""
    layers = list(layers)
    original = original_names(layer.removeprefix(f"{UNET}.") for layer in layers if layer.startswith(f"{UNET}."))
    names: dict[str, str] = {}
    for layer in layers:
        network, _, path = layer.partition(".")
        paths = [path, *([original[path]] if network == UNET and path in original else [])]
        flat = [f"{prefix}{path.replace('.', '_')}" for prefix in KOHYA[network] for path in paths]
        names |= dict.fromkeys((layer, *_older(layer), *flat), layer)
        names.setdefault(path, layer)
    return names


def _older(layer: str) -> Iterator[str]:
    for end, older in OLDER.items():
        if layer.endswith(f".{end}"):
            yield f"{layer.removesuffix(end)}{older}"


def original_names(paths: Iterable[str]) -> dict[str, str]:
    """diffusers' paths in a UNet -> those of the code that Stable Diffusion was published with.

    Its input and output blocks are single layers, counted through; how many diffusers has in a block shows in its up
    blocks. A path that has no other name is left out.
    """
    paths = list(paths)
    matches = [match for path in paths if (match := LAYER.fullmatch(path))]
    up = [int(match["l"]) for match in matches if match["block"] == "up"]
    attentive = {match["b"] for match in matches if match["block"] == "up" and match["kind"] == "attentions"}
    named = {path: _original_name(path, 1 + max(up, default=0), attentive) for path in paths}
    return {path: name for path, name in named.items() if name is not None}


def _original_name(path: str, per_block: int, attentive: set[str]) -> str | None:
    """`per_block`: layers of an up block, or of a down block and its sampler; `attentive`: up blocks with attention."""
    if match := LAYER.fullmatch(path):
        first = 1 if match["block"] == "down" else 0
        index = first + per_block * int(match["b"]) + int(match["l"])
        return f"{_side(match)}.{index}.{_inner(match)}"
    if match := MIDDLE.fullmatch(path):
        place = 2 * int(match["l"]) + (match["kind"] == "attentions")
        return f"middle_block.{place}.{_inner(match).partition('.')[2]}"
    if match := SAMPLER.fullmatch(path):
        index = per_block * (int(match["b"]) + 1)
        if match["block"] == "down":
            return f"input_blocks.{index}.0.op"
        return f"output_blocks.{index - 1}.{1 + (match['b'] in attentive)}.conv"
    return ENDS.get(path)


def _side(match: re.Match[str]) -> str:
    return "input_blocks" if match["block"] == "down" else "output_blocks"


def _inner(match: re.Match[str]) -> str:
    """A layer's residual block comes first, its attention second."""
    if match["kind"] == "attentions":
        return f"1.{match['rest']}"
    return f"0.{RESNET.get(match['rest'], match['rest'])}"
