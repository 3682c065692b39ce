"""The sizes of a model's tensors, read from its networks' configurations."""

from bolid_export.shallow import deep_channels
from bolid_export.sources.model import Model
from bolid_sdk.contracts import Sizes


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
        image_size=vision.image_size if vision else 0,
        patch_tokens=(vision.image_size // vision.patch_size) ** 2 + 1 if adapter.reads == "patches" else 1,
        patch_width=adapter.width,
        identity_tokens=adapter.identity_tokens,
        image_tokens=adapter.image_tokens,
        cross_attention_layers=len(adapter.layers),
        pose_channels=tuple(adapter.pose_guider.config.channels) if adapter.pose_guider else (),
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
        parts=adapter.parts,
    )


def vae_factor(checkpoint: Model) -> int:
    """Pixels a latent: every level of diffusers' autoencoders but one halves the picture."""
    config = checkpoint.vae.config
    levels = config.get("encoder_block_out_channels") or config.block_out_channels
    return 2 ** (len(levels) - 1)
