"""LoRAs in three ways of naming, fused: W + weight * alpha / rank * B A, computed here by itself."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from bolid_export.sources import Lora
from bolid_export.sources.diffusers_folder import load_folder
from bolid_export.sources.loras import fuse_loras
from bolid_sdk.errors import InputError

RANK, ALPHA = 3, 1.5
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"
UNET = (
    f"{ATTENTION}.to_q",
    f"{ATTENTION}.to_out.0",
    "down_blocks.0.attentions.0.proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.1.resnets.0.conv1",
    "down_blocks.0.downsamplers.0.conv",
    "time_embedding.linear_1",
)
TEXT = ("encoder.layers.0.self_attn.out_proj", "encoder.layers.0.mlp.fc1")


@pytest.fixture
def base(sd15_folder):
    return load_folder(sd15_folder)


def modules(base):
    networks = {"unet": (base.unet, UNET), "text_encoder": (base.text_encoder, TEXT)}
    return {f"{n}.{name}": root.get_submodule(name) for n, (root, names) in networks.items() for name in names}


def matrices(base):
    """Random (A, B) for each module; for a convolution A has its kernel."""
    random = torch.Generator().manual_seed(0)
    pairs = {}
    for name, module in modules(base).items():
        out, *rest = module.weight.shape
        up = (out, RANK, *([1, 1] if len(rest) > 1 else []))
        pairs[name] = torch.randn(RANK, *rest, generator=random), torch.randn(up, generator=random)
    return pairs


def named_as_diffusers(name, down, up):
    name = name.replace("text_encoder.", "text_encoder.text_model.")
    return {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}


def named_as_kohya(name, down, up):
    network, _, path = name.partition(".")
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te_text_model_"}[network] + path.replace(".", "_")
    weights = {f"{prefix}.lora_down.weight": down, f"{prefix}.lora_up.weight": up}
    return weights | {f"{prefix}.alpha": torch.tensor(ALPHA)}


def named_as_peft(name, down, up):
    path = "base_model.model." + name.partition(".")[2]
    return {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}


def named_as_old_diffusers(name, down, up):
    if name.endswith(".to_q"):
        name = f"{name.removesuffix('.to_q')}.processor.to_q_lora"
        return {f"{name}.down.weight": down, f"{name}.up.weight": up}
    if name.startswith("text_encoder."):
        name = name.replace("text_encoder.", "text_encoder.text_model.")
        return {f"{name}.lora_linear_layer.down.weight": down, f"{name}.lora_linear_layer.up.weight": up}
    return {f"{name}.lora.down.weight": down, f"{name}.lora.up.weight": up}


# each with the scale that its file says: kohya's alpha, PEFT's file, diffusers' header, or nothing
STYLES = {
    "diffusers": (named_as_diffusers, ALPHA / RANK),
    "kohya": (named_as_kohya, ALPHA / RANK),
    "peft": (named_as_peft, ALPHA / RANK),
    "old": (named_as_old_diffusers, 1.0),
}


def write(style, pairs, folder):
    file = folder / "lora.safetensors"
    named, _ = STYLES[style]
    state = {key: tensor for name, pair in pairs.items() for key, tensor in named(name, *pair).items()}
    settings = {f"{network}.lora_alpha": ALPHA for network in ("unet", "text_encoder")}
    header = {"lora_adapter_metadata": json.dumps(settings)} if style == "diffusers" else None
    save_file(state, file, metadata=header)
    if style == "peft":
        (folder / "adapter_config.json").write_text(json.dumps({"lora_alpha": ALPHA, "r": RANK}))
    return file


def in_numpy(weight, down, up, scale):
    """Sums over the rank, one at a time."""
    change = np.zeros(weight.shape)
    for rank in range(RANK):
        column = up[:, rank].reshape(-1, *[1] * (weight.ndim - 1)).double().numpy()
        change += column * down[rank].double().numpy()
    return weight.double().numpy() + scale * change


@pytest.mark.parametrize("style", STYLES)
def test_fusing_adds_the_product_of_the_matrices(base, style, tmp_path):
    pairs = matrices(base)
    before = {name: tensor.clone() for name, tensor in all_weights(base).items()}
    fuse_loras(base, [Lora.parse(f"{write(style, pairs, tmp_path)}:0.7")])
    for name, tensor in all_weights(base).items():
        module = name.removesuffix(".weight")
        if module in pairs:
            expected = in_numpy(before[name], *pairs[module], 0.7 * STYLES[style][1])
            np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-5)
        else:
            assert torch.equal(tensor, before[name]), f"{name} is not in the file"


@pytest.mark.parametrize("style", ["diffusers", "kohya", "old"])
def test_settings_of_another_lora_in_the_folder_change_nothing(base, style, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 64, "r": RANK}))
    test_fusing_adds_the_product_of_the_matrices(base, style, tmp_path)


def all_weights(base):
    networks = {"unet": base.unet, "text_encoder": base.text_encoder}
    return {f"{n}.{name}": tensor for n, root in networks.items() for name, tensor in root.state_dict().items()}


def test_diffusers_fuses_the_same(base, sd15_folder, tmp_path):
    pytest.importorskip("peft")
    pairs = {name: pair for name, pair in matrices(base).items() if ATTENTION in name or "ff.net" in name}
    file = write("kohya", pairs, tmp_path)
    pipe = StableDiffusionPipeline.from_pretrained(sd15_folder, safety_checker=None, requires_safety_checker=False)
    pipe.load_lora_weights(str(tmp_path), weight_name=file.name)
    pipe.fuse_lora(lora_scale=0.7)
    pipe.unload_lora_weights()
    fuse_loras(base, [Lora(path=file, weight=0.7)])
    torch.testing.assert_close(dict(base.unet.state_dict()), dict(pipe.unet.state_dict()), rtol=0, atol=1e-5)


def test_two_loras_add_up(base, tmp_path):
    pairs = matrices(base)
    name = f"unet.{UNET[0]}"
    before = modules(base)[name].weight.clone()
    file = write("kohya", pairs, tmp_path)
    fuse_loras(base, [Lora(path=file, weight=0.5), Lora(path=file, weight=-0.25)])
    np.testing.assert_allclose(
        modules(base)[name].weight.numpy(), in_numpy(before, *pairs[name], 0.25 * ALPHA / RANK), atol=1e-5
    )


def test_what_does_not_fit_is_listed(base, tmp_path):
    file = tmp_path / "lora.safetensors"
    good = named_as_kohya("unet." + UNET[0], torch.zeros(RANK, 32), torch.zeros(32, RANK))

    def refused(state, match):
        save_file(state, file)
        with pytest.raises(InputError, match=match):
            fuse_loras(base, [Lora(path=file)])

    second = {"lora_te2_text_model_x.lora_up.weight": torch.zeros(1), "lora_unet_y.dora_scale": torch.zeros(1)}
    refused(
        good | second, r"2 of 5 keys have no place .*lora_te2_text_model_x\.lora_up\.weight, lora_unet_y\.dora_scale"
    )
    refused({key: tensor for key, tensor in good.items() if "up" not in key}, "no up weight for unet.down_blocks")
    wrong = named_as_kohya("unet." + UNET[0], torch.zeros(RANK, 7), torch.zeros(32, RANK))
    refused(wrong, "does not fit this model at unet.down_blocks")
    refused(named_as_peft("unet." + UNET[0], torch.zeros(RANK, 32), torch.zeros(32, RANK)), "adapter_config.json")


def test_files_and_weights_are_told_apart(tmp_path):
    (tmp_path / "a:b.safetensors").touch()
    assert Lora.parse(f"{tmp_path}/a:b.safetensors").weight == 1.0
    assert Lora.parse(f"{tmp_path}/a:b.safetensors:-0.5").weight == -0.5
    for text, match in (
        (f"{tmp_path}/none.safetensors:1", "no such LoRA"),
        (f"{tmp_path}/a:b.safetensors:nan", "finite"),
    ):
        with pytest.raises(InputError, match=match):
            Lora.parse(text)
