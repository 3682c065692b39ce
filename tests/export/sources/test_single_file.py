"""Single files in the original layout, other autoencoders, and which family some weights are of."""

import json
import re
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from diffusers.loaders.single_file_utils import CHECKPOINT_KEY_NAMES, convert_ldm_unet_checkpoint
from safetensors.torch import load_file, save_file

from bolid_export.package import noise_schedule
from bolid_export.sources import Choices, open_source
from bolid_export.sources.diffusers_folder import load_folder
from bolid_export.sources.families import exportable_family
from bolid_export.sources.files import read_shapes
from bolid_export.sources.single_file import SD15, clip_tokenizer, load_single_file
from bolid_export.sources.vaes import load_vae
from bolid_sdk.errors import InputError

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}


def ldm_unet_name(name, layers):
    """CompVis' name of a UNet weight: blocks are counted through, resnets and attentions are items of a block."""
    module, _, end = name.rpartition(".")
    if module in ENDS:
        return f"{ENDS[module]}.{end}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, index, rest = match.groups()
        return f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}.{resnet(kind, rest)}"
    side, block, kind, index, rest = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", name).groups()
    block, index, item = int(block), int(index), int(kind == "attentions")
    if kind == "downsamplers":
        return f"input_blocks.{(layers + 1) * (block + 1)}.0.op.{end}"
    if kind == "upsamplers":  # after the attention, if the block has one
        return f"output_blocks.{(layers + 1) * block + layers}.{1 if block == 0 else 2}.conv.{end}"
    first = (layers + 1) * block + index + (side == "down")
    return f"{'input' if side == 'down' else 'output'}_blocks.{first}.{item}.{resnet(kind, rest)}"


def resnet(kind, rest):
    module, _, end = rest.rpartition(".")
    return f"{RESNET[module]}.{end}" if kind == "resnets" else rest


def ldm_vae_name(name, levels):
    for pattern, replacement in (
        (r"down_blocks\.(\d)\.resnets\.", r"down.\1.block."),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"up_blocks\.(\d)\.resnets\.", lambda m: f"up.{levels - 1 - int(m[1])}.block."),
        (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample"),
        (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
        (r"mid_block\.attentions\.0\.(.+)\.(\w+)$", lambda m: f"mid.attn_1.{VAE_ATTENTION[m[1]]}.{m[2]}"),
        ("conv_norm_out", "norm_out"),
        ("conv_shortcut", "nin_shortcut"),
    ):
        name = re.sub(pattern, replacement, name)
    return name


def ldm_vae_state(vae):
    state = {ldm_vae_name(name, 4): tensor for name, tensor in vae.state_dict().items()}
    pointwise = lambda name, t: t[:, :, None, None] if ".attn_1." in name and t.ndim == 2 else t  # noqa: E731
    return {name: pointwise(name, tensor).contiguous() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def single_file(sd15_folder, tmp_path_factory):
    model = load_folder(sd15_folder)
    state = {f"model.diffusion_model.{ldm_unet_name(n, 1)}": t for n, t in model.unet.state_dict().items()}
    state |= {f"first_stage_model.{name}": tensor for name, tensor in ldm_vae_state(model.vae).items()}
    prefix = "cond_stage_model.transformer.text_model."
    state |= {prefix + n.removeprefix("text_model."): t for n, t in model.text_encoder.state_dict().items()}
    file = tmp_path_factory.mktemp("single") / "dreams.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    return file


def test_a_single_file_is_the_folder_it_was_made_of(single_file, sd15_folder):
    found, expected = load_single_file(single_file, sd15_folder), load_folder(sd15_folder)
    for name in ("unet", "vae", "text_encoder"):
        states = [dict(getattr(base, name).state_dict()) for base in (found, expected)]
        torch.testing.assert_close(*states, rtol=0, atol=0)
    assert found.scheduler.config.steps_offset == 1


def test_the_prediction_type_is_the_schedulers_or_what_is_said(
    single_file, sd15_folder, image_encoder_folder, ip_adapters
):
    def opened(**choices):
        choices |= {"image_encoder": image_encoder_folder, "config": sd15_folder}
        return open_source(single_file, [ip_adapters["base"]], Choices(**choices))

    epsilon, v = opened(), opened(prediction_type="v_prediction")
    assert noise_schedule(epsilon.checkpoint).prediction_type == "epsilon"
    assert noise_schedule(v.checkpoint).prediction_type == "v_prediction"
    assert "as was said" in v.decisions["prediction type"]
    assert not epsilon.checkpoint.scheduler.config.clip_sample
    assert set(epsilon.hashes) == {"dreams.safetensors", "image_encoder", "adapter/identity.safetensors"}
    assert epsilon.name == "dreams"


def test_the_shipped_tokenizer_is_clips():
    """Ids that are documented in many places: "a photo of an astronaut riding a horse on mars"."""
    tokenizer = clip_tokenizer()
    assert (len(tokenizer), tokenizer.model_max_length) == (49408, 77)
    ids = tokenizer("a photo of an astronaut riding a horse on mars")["input_ids"]
    assert ids == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407]


def test_the_shipped_configuration_is_that_of_sd15():
    """Parameters of the published networks."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(SD15 / "unet"))
        vae = AutoencoderKL.from_config(AutoencoderKL.load_config(SD15 / "vae"))
    count = lambda network: sum(parameter.numel() for parameter in network.parameters())  # noqa: E731
    assert (count(unet), count(vae)) == (859_520_964, 83_653_863)
    text = json.loads((SD15 / "text_encoder" / "config.json").read_text())
    assert (text["hidden_size"], text["num_hidden_layers"], text["hidden_act"]) == (768, 12, "quick_gelu")


def test_the_original_names_are_those_of_the_published_file():
    """At true size, without weights: diffusers knows every name, and tells SD1.5 by one of them."""
    config = UNet2DConditionModel.load_config(SD15 / "unet")
    with torch.device("meta"):
        expected = UNet2DConditionModel.from_config(config).state_dict()
    original = {f"model.diffusion_model.{ldm_unet_name(name, 2)}": tensor for name, tensor in expected.items()}
    assert CHECKPOINT_KEY_NAMES["v1"] in original
    assert exportable_family({name: tuple(t.shape) for name, t in original.items()}, SD15) == "stable-diffusion"
    converted = convert_ldm_unet_checkpoint(original, config)
    assert {n: t.shape for n, t in converted.items()} == {n: t.shape for n, t in expected.items()}


@pytest.mark.parametrize("layout", ["tiny file", "tiny folder", "full file", "original file"])
def test_another_vae_decodes_as_it_should(layout, sd15_folder, tmp_path):
    own = load_folder(sd15_folder).vae
    torch.manual_seed(3)
    kind, place = layout.split()
    vae = AutoencoderTiny() if kind == "tiny" else AutoencoderKL.from_config(own.config)
    path = tmp_path / "vae"
    if place == "folder":
        vae.save_pretrained(path)
    else:
        path = path.with_suffix(".safetensors")
        save_file(ldm_vae_state(vae) if kind == "original" else vae.state_dict(), path)
    latents = torch.randn(1, 4, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(load_vae(path, own).decode(latents).sample, vae.eval().decode(latents).sample)


def test_a_vae_of_other_latents_is_refused(sd15_folder, tmp_path):
    own = load_folder(sd15_folder).vae
    wide = AutoencoderTiny(encoder_block_out_channels=(4,) * 4, decoder_block_out_channels=(4,) * 4, latent_channels=16)
    wide.save_pretrained(tmp_path / "wide")
    with pytest.raises(InputError, match="latents of 16 channels, this model's have 4"):
        load_vae(tmp_path / "wide", own)
    save_file({"a": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match="is not a VAE"):
        load_vae(tmp_path / "a.safetensors", own)


def test_families_are_told_by_keys(single_file, tmp_path):
    assert exportable_family(read_shapes(single_file), single_file) == "stable-diffusion"

    def refused(match, **shapes):
        with pytest.raises(InputError, match=match):
            exportable_family({name.replace("__", "."): shape for name, shape in shapes.items()}, tmp_path)

    refused("stable-diffusion-xl model", add_embedding__linear_1__weight=(1,), conv_in__weight=(320, 4, 3, 3))
    refused("stable-diffusion-xl model", model__diffusion_model__label_emb__0__0__weight=(1,))
    refused("reads 9 channels", conv_in__weight=(320, 9, 3, 3), conv_out__weight=(4, 320, 3, 3))
    refused("reads its guidance", conv_in__weight=(320, 4, 3, 3), time_embedding__cond_proj__weight=(320, 256))
    refused("no denoiser of a known family .*first keys: text", text=(1,))


def test_a_single_file_without_a_part_says_which(single_file, tmp_path):
    state = {name: t for name, t in load_file(single_file).items() if not name.startswith("first_stage_model.")}
    save_file(state, tmp_path / "pruned.safetensors")
    with pytest.raises(InputError, match="has no VAE"):
        load_single_file(tmp_path / "pruned.safetensors")
    shutil.copy(single_file, tmp_path / "dreams.ckpt")
    with pytest.raises(InputError, match="is a pickle"):
        open_source(tmp_path / "dreams.ckpt")
