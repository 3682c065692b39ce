"""InstantID's IdentityNet (arXiv:2401.07519): a ControlNet that sees the person instead of the text.

It is initialised from the UNet, driven by the drawn skeleton, and its text input is *only* the identity tokens; what it
finds is added to the UNet's skip connections. A skeleton map of zeros stands for no pose. The published one, of SDXL,
is driven by five drawn keypoints of a face, and knows no map of zeros.
"""

from typing import Any

from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from bolid_training.model.attention import PlainAttnProcessor


def build_identity_net(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet with the weights of `unet`, which must not have body-ID attention yet; it starts without effect.

    `from_unet` forgets how many heads pool a text beside cross-attention (`addition_embed_type="text"`).
    """
    copied = ControlNetModel.from_unet(unet)
    # without the private note of what was a default, which would make it a default again
    config = {name: value for name, value in copied.config.items() if not name.startswith("_")}
    heads = {"addition_embed_type_num_heads": unet.config.addition_embed_type_num_heads}
    net = ControlNetModel.from_config(config | heads)
    net.load_state_dict(copied.state_dict())
    net.set_attn_processor(PlainAttnProcessor())
    return net


def identity_residuals(
    net: ControlNetModel,
    sample: Tensor,
    timestep: Tensor,
    identity_tokens: Tensor,
    skeleton: Tensor,
    added_cond_kwargs: dict[str, Tensor] | None = None,
) -> dict[str, Tensor | list[Tensor]]:
    """The UNet's arguments for what the IdentityNet adds, of samples [B, c, h, w] and skeletons [B, 3, 8h, 8w].

    `added_cond_kwargs`: SDXL's pooled text and sizes. The pooled text is all that an IdentityNet sees of a prompt.
    """
    down, mid = net(sample, timestep, identity_tokens, skeleton, added_cond_kwargs=added_cond_kwargs, return_dict=False)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}


class IdentityGuidedUNet(nn.Module):
    """A UNet with its IdentityNet, behind the UNet's own signature.

    Beside the identity tokens, the attention's arguments bring `skeleton` [B, 3, 8h, 8w] in [0, 1] and `pose_scale`
    [1], the weight of what the IdentityNet adds.
    """

    def __init__(self, unet: UNet2DConditionModel, identity_net: ControlNetModel):
        super().__init__()
        self.unet, self.identity_net = unet, identity_net

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        *,
        cross_attention_kwargs: dict[str, Tensor],
        added_cond_kwargs: dict[str, Tensor] | None = None,
        **guided: Any,
    ) -> Any:
        attention = dict(cross_attention_kwargs)
        skeleton, scale = attention.pop("skeleton"), attention.pop("pose_scale")
        tokens = attention["identity_tokens"]
        down, mid = identity_residuals(
            self.identity_net, sample, timestep, tokens, skeleton, added_cond_kwargs
        ).values()
        return self.unet(
            sample,
            timestep,
            encoder_hidden_states,
            cross_attention_kwargs=attention,
            added_cond_kwargs=added_cond_kwargs,
            down_block_additional_residuals=[scale * residual for residual in down],
            mid_block_additional_residual=scale * mid,
            **guided,
        )
