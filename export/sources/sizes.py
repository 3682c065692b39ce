"""The sizes of a checkpoint's tensors, read from its networks' configurations."""

from bolid_export.shallow import deep_channels
from bolid_sdk.contracts import Sizes
from bolid_training.model.checkpoint import Checkpoint


def model_sizes(checkpoint: Checkpoint) -> Sizes:
    """Sizes of every graph of `checkpoint`. Sides of a picture may be half to double the trained ones."""
    unet, vision = checkpoint.unet.config, checkpoint.image_encoder.config
    adapter, factor = checkpoint.adapter, vae_factor(checkpoint)
    pose_height, pose_width = checkpoint.pose_estimator.image_size
    native = unet.sample_size * factor
    step = factor * 2 ** (len(unet.block_out_channels) - 1)
    return Sizes(
        latent_channels=unet.in_channels,
        vae_factor=factor,
        text_length=checkpoint.tokenizer.model_max_length,
        context_width=unet.cross_attention_dim,
        image_size=vision.image_size,
        patch_tokens=(vision.image_size // vision.patch_size) ** 2 + 1,
        patch_width=vision.hidden_size,
        identity_tokens=adapter.identity_encoder.resampler.latents.shape[1],
        image_tokens=adapter.image_projector.latents.shape[1],
        cross_attention_layers=len(adapter.layers),
        pose_channels=() if adapter.pose_guider is None else tuple(adapter.pose_guider.config.channels),
        pose_height=pose_height,
        pose_width=pose_width,
        native_height=native,
        native_width=native,
        min_side=max(step, native // 2 // step * step),
        max_side=2 * native,
        size_step=step,
        # a shallow half would need the IdentityNet as well, which is what it is to save
        deep_channels=deep_channels(checkpoint.unet) if adapter.identity_net is None else 0,
        identity_net=adapter.identity_net is not None,
    )


def vae_factor(checkpoint: Checkpoint) -> int:
    """Pixels a latent: every level of diffusers' autoencoders but one halves the picture."""
    config = checkpoint.vae.config
    levels = config.get("encoder_block_out_channels") or config.block_out_channels
    return 2 ** (len(levels) - 1)
