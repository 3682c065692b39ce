"""LoRA files without PyTorch: read as the safetensors library and diffusers read them, stacked as arithmetic says."""

import hashlib
import json

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from bolid_sdk.contracts import LORA_DOWN, LORA_UP, LoraLayer, Sizes
from bolid_sdk.errors import BundleError, InputError
from bolid_sdk.kept import Kept
from bolid_sdk.lora_format import HEADER, PEFT_CONFIG, PEFT_PREFIX
from bolid_sdk.lora_names import names_in_files, original_names
from bolid_sdk.loras import Loras
from bolid_sdk.manifest import Manifest
from bolid_sdk.safetensors_file import DTYPES, read_safetensors

LAYERS = (
    LoraLayer("unet.up_blocks.0.attentions.0.proj_in", 3, 4),
    LoraLayer("unet.up_blocks.0.attentions.0.proj_out", 5, 2),
    LoraLayer("text_encoder.encoder.layers.0.mlp.fc1", 2, 6),
)
LIMIT = 16
TORCH = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool", "U8": "uint8"}
TORCH |= {f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)}


@pytest.fixture(scope="module")
def sizes(tiny_bundle):
    values = tiny_bundle.manifest.sizes.to_dict()
    return Sizes.from_dict({**values, "lora_rank": LIMIT, "lora_layers": LAYERS})


def test_every_dtype_is_read_as_the_library_wrote_it():
    state = {name: (torch.randn(2, 3) * 50).to(getattr(torch, dtype)) for name, dtype in TORCH.items()}
    assert set(TORCH) == set(DTYPES)
    state |= {"empty": torch.zeros(0, 4), "number": torch.tensor(1.5)}
    tensors, metadata = read_safetensors(save(state, metadata={"a": "b"}), "x")
    assert metadata == {"a": "b"}
    assert tensors.keys() == state.keys()
    for name, tensor in state.items():
        assert tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensors[name], tensor.float().numpy())


@given(cut=st.integers(0, 200))
def test_a_part_of_a_file_is_refused(cut):
    content = save({"a": torch.ones(4, 4), "b": torch.ones(3)})
    if cut < len(content):
        with pytest.raises(InputError, match=r"file\.safetensors"):
            read_safetensors(content[:cut], "file.safetensors")


@given(entry=st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), st.from_type(object) | st.integers()))
@settings(max_examples=30)
def test_nonsense_in_the_header_is_refused(entry):
    header = json.dumps({"a": entry}, default=str).encode()
    with pytest.raises(InputError, match="damaged"):
        read_safetensors(len(header).to_bytes(8, "little") + header + bytes(64), "x")


# what diffusers does to a key afterwards
RENAMED = {"input_blocks": "down_blocks", "middle_block": "mid_block", "output_blocks": "up_blocks"}
RENAMED |= {"in_layers_2": "conv1", "emb_layers_1": "time_emb_proj", "out_layers_3": "conv2"}
RENAMED |= {"skip_connection": "conv_shortcut", "_op": "_conv"}


def unet(blocks, attentive):
    """Names of a UNet's layers, SD1.5's or SDXL's in small. diffusers takes block 10 for block 1: fewer, then."""
    down = [f"{'CrossAttn' if attention else ''}DownBlock2D" for attention in attentive]
    up = [f"{'CrossAttn' if attention else ''}UpBlock2D" for attention in reversed(attentive)]
    network = UNet2DConditionModel(
        block_out_channels=(8,) * len(attentive),
        layers_per_block=blocks,
        down_block_types=down,
        up_block_types=up,
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    layers = (torch.nn.Linear, torch.nn.Conv2d)
    return network.config, [name for name, module in network.named_modules() if isinstance(module, layers)]


@pytest.mark.parametrize(
    ("blocks", "attentive"), [(2, (True, True, False)), (2, (False, True, True)), (1, (True, False))]
)
def test_original_block_names_are_those_that_diffusers_reads(blocks, attentive):
    """Of every layer in the blocks, apart from upsamplers, which diffusers takes for attention where there is none."""
    config, names = unet(blocks, attentive)
    inside = [name for name in names if "block" in name and "upsamplers" not in name]
    original = original_names(names)
    assert set(inside) <= set(original)
    state = {f"lora_unet_{original[name].replace('.', '_')}.lora_down.weight": name for name in inside}
    assert len(state) == len(inside)
    for found, name in _maybe_map_sgm_blocks_to_diffusers(state, config).items():
        mapped = found.removeprefix("lora_unet_").removesuffix(".lora_down.weight")
        for theirs, ours in RENAMED.items():
            mapped = mapped.replace(theirs, ours)
        assert mapped == name.replace(".", "_")


def test_all_names_of_a_layer_lead_to_it():
    names = names_in_files(
        ["unet.up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_out.0", *(layer.name for layer in LAYERS)]
    )
    for name in (
        "up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_out.0",
        "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_out",
        "lora_unet_up_blocks_1_attentions_2_transformer_blocks_0_attn1_to_out_0",
        "lora_unet_output_blocks_5_1_transformer_blocks_0_attn1_to_out_0",
    ):
        assert names[name] == "unet.up_blocks.1.attentions.2.transformer_blocks.0.attn1.to_out.0"
    for name in ("lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_te1_text_model_encoder_layers_0_mlp_fc1"):
        assert names[name] == LAYERS[2].name


@st.composite
def requests(draw):
    """LoRAs of some layers each, of any rank, alpha, size and weight."""
    loras = []
    for _ in range(draw(st.integers(0, 3))):
        chosen = draw(st.lists(st.sampled_from(LAYERS), min_size=1, unique=True))
        parts = {
            layer: (draw(st.integers(1, 4)), draw(st.floats(0.1, 8)), draw(st.floats(1e-6, 1e3))) for layer in chosen
        }
        loras.append((parts, draw(st.floats(-2, 2))))
    return loras, draw(st.integers(0, 1000))


@given(made=requests())
@settings(deadline=None, max_examples=40)
def test_a_stack_is_the_sum_of_its_loras(made, sizes, tmp_path_factory):
    drawn, seed = made
    random, loras = np.random.default_rng(seed), Loras(sizes)
    expected = {layer: np.zeros((layer.outputs, layer.inputs)) for layer in LAYERS}
    asked, folder = [], tmp_path_factory.mktemp("loras")
    for index, (parts, weight) in enumerate(drawn):
        state = {}
        for layer, (rank, alpha, size) in parts.items():
            down, up = random.normal(0, size, (rank, layer.inputs)), random.normal(0, 1, (layer.outputs, rank))
            state |= {
                f"{layer.name}.lora_A.weight": down,
                f"{layer.name}.lora_B.weight": up,
                f"{layer.name}.alpha": alpha,
            }
            expected[layer] += weight * alpha / rank * up.astype(np.float32).astype(float) @ down.astype(np.float32)
        tensors = {name: torch.tensor(value, dtype=torch.float32) for name, value in state.items()}
        file = folder / f"{index}.safetensors"
        file.write_bytes(save(tensors))
        asked.append((file, weight))
    stack = loras.stack(asked)
    assert stack.of("denoiser") is stack.of("denoiser_shallow")
    for graph in ("denoiser", "text_encoder"):
        down, up = stack.of(graph)[LORA_DOWN], stack.of(graph)[LORA_UP]
        assert down.shape[1] == up.shape[1]
        assert down.shape[1].bit_count() == 1
        first_in = first_out = 0
        for layer in sizes.layers_of(graph):
            rows = up[first_out : first_out + layer.outputs].astype(float) @ down[first_in : first_in + layer.inputs].T
            scale = np.abs(expected[layer]).max() + sum(abs(w) for _, w in drawn) * 1e-3
            np.testing.assert_allclose(rows, expected[layer], atol=1e-4 * scale + 1e-30)
            first_in, first_out = first_in + layer.inputs, first_out + layer.outputs


def test_stacks_cannot_be_written_to_and_are_made_once(sizes, tmp_path):
    file = tmp_path / "one.safetensors"
    name = LAYERS[0].name
    file.write_bytes(
        save({f"{name}.lora_A.weight": torch.ones(2, 3), f"{name}.lora_B.weight": torch.ones(4, 2) * 1e-6})
    )
    loras = Loras(sizes)
    first, again = loras.stack([(file, 1.0)]), loras.stack([(loras.load(file), 1.0)])
    assert first.of("denoiser")[LORA_DOWN] is again.of("denoiser")[LORA_DOWN]
    with pytest.raises(ValueError, match="read-only"):
        first.of("denoiser")[LORA_DOWN][:] = 0
    # float16 holds both halves of a small change
    peaks = [float(np.abs(first.of("denoiser")[half]).max()) for half in (LORA_DOWN, LORA_UP)]
    assert max(peaks) / min(peaks) <= 2
    with pytest.raises(InputError, match="too large to compute with"):
        loras.stack([(file, 1e300)])
    with pytest.raises(InputError, match="loaded for another model"):
        Loras(Sizes.from_dict({**sizes.to_dict(), "lora_layers": LAYERS[:2]})).load(loras.load(file))


def low_rank(name):
    return {f"{name}.lora_A.weight": torch.ones(2, 3), f"{name}.lora_B.weight": torch.ones(4, 2)}


def test_settings_of_another_lora_in_the_folder_change_nothing(sizes, tmp_path):
    """Only PEFT's files have their alpha beside them: others say it themselves, or it is their rank."""
    file, beside = tmp_path / "one.safetensors", tmp_path / PEFT_CONFIG
    for header, scale in ((None, 1.0), ({HEADER: json.dumps({"unet.lora_alpha": 1})}, 0.5)):
        file.write_bytes(save(low_rank(LAYERS[0].name), metadata=header))
        digests = set()
        for content in (None, b'{"lora_alpha": 64}', b'{"use_dora": true}', b"\xff"):
            beside.unlink(missing_ok=True)
            if content is not None:
                beside.write_bytes(content)
            lora = Loras(sizes).load(file)
            assert lora.changes[LAYERS[0].name].scale == scale
            digests.add(lora.digest)
        assert digests == {hashlib.sha256(file.read_bytes()).hexdigest()}


def test_settings_of_pefts_files_lie_beside_them(sizes, tmp_path):
    file, beside, loras = tmp_path / "one.safetensors", tmp_path / PEFT_CONFIG, Loras(sizes)
    file.write_bytes(save(low_rank(PEFT_PREFIX + LAYERS[0].name.removeprefix("unet."))))
    digests = set()
    for alpha in (1, 64):
        beside.write_text(json.dumps({"lora_alpha": alpha}))
        lora = loras.load(file)
        assert lora.changes[LAYERS[0].name].scale == alpha / 2
        digests.add(lora.digest)
    assert len(digests) == 2
    beside.write_text("[" * 100_000)
    with pytest.raises(InputError, match=r"the settings of .*one\.safetensors are not valid JSON"):
        loras.load(file)
    beside.write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"adapter_config\.json, the settings of one\.safetensors, cannot be read"):
        loras.load(file)


def test_manifests_say_what_graphs_take(sizes, tiny_bundle):
    assert Sizes.from_dict(json.loads(json.dumps(sizes.to_dict()))) == sizes
    assert not {"lora_rank", "lora_layers"} & set(tiny_bundle.manifest.sizes.to_dict())
    assert "loras" not in tiny_bundle.manifest.capabilities
    with pytest.raises(ValueError, match="does not fit 0 lora_layers"):
        Sizes.from_dict({**tiny_bundle.manifest.sizes.to_dict(), "lora_rank": 4})
    values = tiny_bundle.manifest.to_dict()
    values["sizes"] = sizes.to_dict()
    with pytest.raises(BundleError, match="lora_down"):
        Manifest.from_dict(values)


@given(keys=st.lists(st.integers(0, 5)), most=st.integers(1, 4))
def test_kept_values_are_the_latest(keys, most):
    kept, recent, made = Kept(most), [], 0
    for key in keys:
        known = key in recent
        before = made

        def make(key=key):
            nonlocal made
            made += 1
            return -key

        assert kept.get(key, make) == -key
        assert made == before + (not known)
        recent = [*(other for other in recent if other != key), key][-most:]
        assert len(kept) == len(recent)
