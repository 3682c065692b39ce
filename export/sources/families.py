"""Which family of models some weights belong to: told by names and shapes of tensors, here and nowhere else."""

from __future__ import annotations

from pathlib import Path

from bolid_export.sources.files import Shapes, listed
from bolid_sdk.errors import InputError

STABLE_DIFFUSION = "stable-diffusion"
"""SD1.5 and what is built like it in other widths, as SD2 and the avatar: one text encoder, cross-attention."""
STABLE_DIFFUSION_XL = "stable-diffusion-xl"

EXPORTABLE = (STABLE_DIFFUSION, STABLE_DIFFUSION_XL)

# Names of a tensor that only this family has, in diffusers' UNet folders and in single files.
MARKS = {
    STABLE_DIFFUSION_XL: ("add_embedding.linear_1.weight", "model.diffusion_model.label_emb.0.0.weight"),
    "Stable Diffusion 3": ("joint_blocks.0.", "model.diffusion_model.joint_blocks.0."),
    "Flux": ("double_blocks.0.", "model.diffusion_model.double_blocks.0."),
    STABLE_DIFFUSION: ("conv_in.weight", "model.diffusion_model.input_blocks.0.0.weight"),
}
ENDS = (
    ("conv_in.weight", "conv_out.weight"),
    ("model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.out.2.weight"),
)
# First parts of keys that only relatives of these families have, and what they are.
RELATIVES = {
    "conditioner.embedders.0.model.": "the refiner of SDXL, which ends what a base began; take the base",
    "cond_stage_model.model.": "a single file of Stable Diffusion 2; take its diffusers folder",
    "edm_mean": "a Playground 2.5, which has EDM's noise schedule; expected a linear or scaled linear one",
    "edm_vpred.": "a CosXL, which has EDM's noise schedule; expected a linear or scaled linear one",
}
GUIDANCE_EMBEDDING = "time_embedding.cond_proj.weight"

# Widths of the text that cross-attention reads: only to say what a foreign adapter was made for.
WIDTHS = {768: "SD1.5", 1024: "SD2", 2048: "SDXL"}


def exportable_family(shapes: Shapes, path: Path) -> str:
    """The family of a denoiser's weights. Raises InputError for none, and for one that is not exported."""
    family = _family(shapes)
    if family is None:
        raise InputError(
            f"{path} holds no denoiser of a known family (first keys: {listed(shapes)}); expected weights of "
            f"{' or '.join(EXPORTABLE)}"
        )
    if family not in EXPORTABLE:
        raise InputError(f"{path} is a {family} model; bolid-export takes {' or '.join(EXPORTABLE)}")
    _require_plain(shapes, path)
    return family


def width_name(width: int) -> str:
    """ "768 (SD1.5)", or the bare number."""
    return f"{width} ({WIDTHS[width]})" if width in WIDTHS else str(width)


def _family(shapes: Shapes) -> str | None:
    for family, marks in MARKS.items():
        if any(name.startswith(mark) for mark in marks for name in shapes):
            return family
    return None


def _require_plain(shapes: Shapes, path: Path) -> None:
    """Inpainting and editing models read a picture beside the sample, distilled ones may read their guidance."""
    for start, relative in RELATIVES.items():
        if any(name.startswith(start) for name in shapes):
            raise InputError(f"{path} is {relative}")
    if GUIDANCE_EMBEDDING in shapes:
        raise InputError(
            f"{path} reads its guidance as an input ({GUIDANCE_EMBEDDING}), as latent consistency models do; take "
            "the LoRA of the same, with --lora on its base"
        )
    for first, last in ENDS:
        if first in shapes and last in shapes and shapes[first][1] != shapes[last][0]:
            raise InputError(
                f"{path} reads {shapes[first][1]} channels and writes {shapes[last][0]}: an inpainting or editing "
                "model; expected one that makes pictures from noise alone"
            )
