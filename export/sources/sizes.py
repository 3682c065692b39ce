"""The sizes of a model's tensors, read from its networks' configurations."""

import json
from typing import Any

from diffusers import T2IAdapter
from transformers import CLIPTokenizer

from bolid_export.shallow import deep_channels
from bolid_export.sources.hot_layers import hot_layers
from bolid_export.sources.model import Model
from bolid_sdk.contracts import TIME_IDS, Sizes
from bolid_sdk.errors import InputError


def model_sizes(checkpoint: Model) -> Sizes:
    """Sizes of every graph of `checkpoint`. Sides of a picture may be half to double the trained ones."""
    unet, adapter, factor = checkpoint.unet.config, checkpoint.adapter, vae_factor(checkpoint)
    vision = checkpoint.image_encoder.config if checkpoint.image_encoder else None
    pose_height, pose_width = checkpoint.pose_estimator.image_size if checkpoint.pose_estimator else (0, 0)
    native = unet.sample_size * factor
    step = factor * 2 ** (len(unet.block_out_channels) - 1)
    return Sizes(
        latent_channels=unet.in_channels,
        vae_factor=factor,
        text_length=min(checkpoint.tokenizer.model_max_length, checkpoint.text_encoder.config.max_position_embeddings),
        context_width=unet.cross_attention_dim,
        token_inputs=token_inputs(checkpoint),
        pooled_width=pooled_width(checkpoint),
        time_ids=time_ids(checkpoint),
        image_size=vision.image_size if vision else 0,
        patch_tokens=(vision.image_size // vision.patch_size) ** 2 + 1 if adapter.reads == "patches" else 1,
        patch_width=adapter.width,
        identity_tokens=adapter.identity_tokens,
        image_tokens=adapter.image_tokens,
        cross_attention_layers=len(adapter.layers),
        pose_channels=tuple(adapter.pose_guider.config.channels) if adapter.pose_guider else (),
        pose_divisors=pose_divisors(adapter.pose_guider, factor) if adapter.pose_guider else (),
        pose_height=pose_height,
        pose_width=pose_width,
        native_height=native,
        native_width=native,
        min_side=max(step, native // 2 // step * step),
        max_side=2 * native,
        size_step=step,
        # a shallow half would need the IdentityNet as well, which is what it is to save
        deep_channels=0 if adapter.identity_net else deep_channels(checkpoint.unet),
        identity_net=adapter.identity_net is not None,
        face_map=adapter.face_map,
        vision_width=adapter.vision_width,
        vision_states=adapter.vision_states,
        parts=adapter.parts,
        lora_rank=checkpoint.lora_rank,
        lora_layers=tuple(hot_layers(checkpoint)) if checkpoint.lora_rank else (),
    )


def token_inputs(checkpoint: Model) -> int:
    """2 if two text towers do not read the same ids: SDXL's differ in what they pad with."""
    first, second = checkpoint.tokenizer, checkpoint.tokenizer_2
    if second is None:
        return 1
    same = first.pad_token_id == second.pad_token_id and _rules(first) == _rules(second)
    return 1 if same else 2


def _rules(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """All but padding and truncation, which calls leave behind."""
    return json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}


def pooled_width(checkpoint: Model) -> int:
    """Width of the second text tower's projection; 0 if there is no such tower."""
    return 0 if checkpoint.text_encoder_2 is None else checkpoint.text_encoder_2.config.projection_dim


def time_ids(checkpoint: Model) -> int:
    """How many numbers tell the UNet of a picture's size. Raises InputError for a UNet that is told other things."""
    unet = checkpoint.unet.config
    if unet.time_cond_proj_dim is not None:
        raise InputError(
            "this UNet is told of guidance, as LCM's distilled ones are, which a bundle does not do; take the LCM as "
            "a LoRA on its base"
        )
    if unet.addition_embed_type in (None, "text"):
        return 0
    if unet.addition_embed_type == "text_time":
        numbers = unet.projection_class_embeddings_input_dim - pooled_width(checkpoint)
        if numbers == TIME_IDS * unet.addition_time_embed_dim:
            return TIME_IDS
    raise InputError(
        f"this UNet adds {unet.addition_embed_type} of width {unet.projection_class_embeddings_input_dim} to its "
        "timestep; expected none, or SDXL's pooled text and six sizes (its refiner takes five)"
    )


def pose_divisors(guider: T2IAdapter, factor: int) -> tuple[int, ...]:
    """Size of each of the guider's feature maps, as a fraction of the latent's."""
    divisor, divisors = guider.downscale_factor // factor, []
    for block in guider.adapter.body:
        divisor *= 1 if block.downsample is None else 2
        divisors.append(divisor)
    return tuple(divisors)


def vae_factor(checkpoint: Model) -> int:
    """Pixels a latent: every level of diffusers' autoencoders but one halves the picture."""
    config = checkpoint.vae.config
    levels = config.get("encoder_block_out_channels") or config.block_out_channels
    return 2 ** (len(levels) - 1)
