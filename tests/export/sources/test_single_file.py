"""Single files in the original layout, other autoencoders, and which family some weights are of."""

import itertools
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import CHECKPOINT_KEY_NAMES, infer_diffusers_model_type
from safetensors.torch import load_file, save_file

from bolid_export.graphs import bind_graphs
from bolid_export.package import default_sampling, noise_schedule, save_tokenizer
from bolid_export.sources import Choices, model_sizes, open_source, original_layout, stored
from bolid_export.sources.clip_merges import clip_tokenizer
from bolid_export.sources.diffusers_folder import load_folder
from bolid_export.sources.families import STABLE_DIFFUSION, STABLE_DIFFUSION_XL, exportable_family
from bolid_export.sources.files import read_shapes
from bolid_export.sources.original_layout import IGNORED, PARTS
from bolid_export.sources.single_file import SD15, SDXL, load_single_file
from bolid_export.sources.vaes import load_vae
from bolid_export.tracing.stream import to_onnx
from bolid_sdk.clip_tokenizer import ClipTokenizer
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
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out", "group_norm": "norm"}
OPEN_CLIP = (
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.final_layer_norm", "ln_final"),
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("self_attn.", "attn."),
    ("layer_norm", "ln_"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
)


def ldm_unet_state(state, layers):
    return {f"model.diffusion_model.{ldm_unet_name(name, layers, state)}": tensor for name, tensor in state.items()}


def ldm_unet_name(name, layers, names):
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
        attends = any(other.startswith(f"up_blocks.{block}.attentions.") for other in names)
        return f"output_blocks.{(layers + 1) * block + layers}.{2 if attends else 1}.conv.{end}"
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


def ldm_vae_state(state):
    state = {ldm_vae_name(name, 4): tensor for name, tensor in state.items()}
    pointwise = lambda name, t: t[:, :, None, None] if ".attn_1." in name and t.ndim == 2 else t  # noqa: E731
    return {name: pointwise(name, tensor).contiguous() for name, tensor in state.items()}


def clip_state(state):
    """transformers' names, with the level that it has dropped for towers without a projection."""
    return {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in state.items()}


def open_clip_state(state):
    """OpenCLIP's: queries, keys and values are one matrix, and the projection multiplies from the right."""
    renamed, state = {}, dict(state)
    for name in [name for name in state if name.endswith(("q_proj.weight", "q_proj.bias"))]:
        fused = torch.cat([state.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"])
        renamed[name.replace("q_proj.", "in_proj_")] = fused
    projection = state.pop("text_projection.weight").T.contiguous()
    renamed |= state
    for old, new in OPEN_CLIP:
        renamed = {name.replace(old, new): tensor for name, tensor in renamed.items()}
    return renamed | {"text_projection": projection, "logit_scale": torch.tensor(4.6)}


def prefixed(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def original_state(networks, layers=1):
    """All weights of a model by the names of the file that CompVis or Stability would have published."""
    states = {name: network.state_dict() for name, network in networks.items()}
    state = ldm_unet_state(states["unet"], layers) | prefixed("first_stage_model.", ldm_vae_state(states["vae"]))
    text = clip_state(states["text_encoder"])
    position_ids = torch.arange(77)[None]
    if "text_encoder_2" not in states:
        text["text_model.embeddings.position_ids"] = position_ids
        return state | prefixed("cond_stage_model.transformer.", text) | {"alphas_cumprod": torch.ones(1000)}
    text["text_model.embeddings.position_ids"] = position_ids
    state |= prefixed("conditioner.embedders.0.transformer.", text)
    return state | prefixed("conditioner.embedders.1.model.", open_clip_state(states["text_encoder_2"]))


@dataclass(frozen=True, kw_only=True)
class Case:
    """A folder of diffusers, the same model as one file, and diffusers' pipeline for it."""

    family: str
    folder: Path
    file: Path
    pipeline: type

    @property
    def networks(self):
        return PARTS[self.family]

    def save(self, file, dropped=(), metadata=None, **added):
        """Another file, without keys that start with `dropped`."""
        state = {name: t for name, t in load_file(self.file).items() if not name.startswith(tuple(dropped))}
        save_file(state | added, file, metadata)
        return file


@pytest.fixture(scope="module")
def sd15(sd15_folder, tmp_path_factory):
    return as_file(STABLE_DIFFUSION, sd15_folder, StableDiffusionPipeline, tmp_path_factory)


@pytest.fixture(scope="module")
def sdxl(sdxl_folder, tmp_path_factory):
    return as_file(STABLE_DIFFUSION_XL, sdxl_folder, StableDiffusionXLPipeline, tmp_path_factory)


@pytest.fixture(params=["sd15", "sdxl"])
def case(request):
    return request.getfixturevalue(request.param)


def as_file(family, folder, pipeline, tmp_path_factory):
    base = load_folder(folder)
    state = original_state({name: getattr(base, name) for name in PARTS[family]})
    file = tmp_path_factory.mktemp("single") / f"{folder.name}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, file)
    return Case(family=family, folder=folder, file=file, pipeline=pipeline)


def assert_equal_networks(found, expected, names):
    for name in names:
        states = [dict(getattr(base, name).state_dict()) for base in (found, expected)]
        torch.testing.assert_close(*states, rtol=0, atol=0)


def test_a_single_file_is_the_folder_it_was_made_of(case):
    found, expected = load_single_file(case.file, case.folder), load_folder(case.folder)
    assert_equal_networks(found, expected, case.networks)
    assert (found.family, found.zero_unconditional) == (expected.family, expected.zero_unconditional)
    assert type(found.scheduler) is type(expected.scheduler)
    assert dict(found.scheduler.config) == dict(expected.scheduler.config)


def test_a_single_file_is_what_diffusers_makes_of_it(case):
    found = load_single_file(case.file, case.folder)
    pipe = case.pipeline.from_single_file(str(case.file), config=str(case.folder), local_files_only=True)
    assert_equal_networks(found, pipe, case.networks)


@pytest.mark.slow
def test_the_engines_of_a_file_are_those_of_its_folder(sdxl, instant_id, tmp_path):
    """Byte for byte."""

    def exported(model, config):
        checkpoint = open_source(model, [instant_id / "ip-adapter.bin"], Choices(config=config)).checkpoint
        sizes = model_sizes(checkpoint)
        graphs, units = bind_graphs(checkpoint, sizes), {"size_step": sizes.size_step, "vae_factor": sizes.vae_factor}
        return [to_onnx(graphs[name], tmp_path, **units).read_bytes() for name in ("text_encoder", "denoiser")]

    assert exported(sdxl.file, sdxl.folder) == exported(sdxl.folder, None)


def test_the_prediction_type_is_the_schedulers_or_what_is_said(sd15, image_encoder_folder, ip_adapters):
    def opened(**choices):
        choices |= {"image_encoder": image_encoder_folder, "config": sd15.folder}
        return open_source(sd15.file, [ip_adapters["base"]], Choices(**choices))

    epsilon, v = opened(), opened(prediction_type="v_prediction")
    assert noise_schedule(epsilon.checkpoint).prediction_type == "epsilon"
    assert noise_schedule(v.checkpoint).prediction_type == "v_prediction"
    assert "as was said" in v.decisions["prediction type"]
    assert not epsilon.checkpoint.scheduler.config.clip_sample
    assert set(epsilon.hashes) == {"dreams.safetensors", "image_encoder", "adapter/identity.safetensors"}
    assert epsilon.name == "dreams"


V_KEYS = {"v_pred": torch.empty(0)}


@pytest.mark.parametrize(
    ("keys", "metadata", "expected"),
    [
        ({}, {"modelspec.prediction_type": "epsilon"}, ("epsilon", False, "linspace", "default")),
        (V_KEYS, None, ("v_prediction", False, "linspace", "key v_pred")),
        (V_KEYS | {"ztsnr": torch.empty(0)}, None, ("v_prediction", True, "trailing", "key v_pred")),
        (
            {},
            {"modelspec.prediction_type": "v"},
            ("v_prediction", False, "linspace", "header's modelspec.prediction_type"),
        ),
    ],
)
def test_a_file_that_says_so_predicts_v(keys, metadata, expected, sdxl, instant_id, tmp_path):
    file = sdxl.save(tmp_path / "dreams.safetensors", metadata=metadata, **keys)
    source = open_source(file, [instant_id / "ip-adapter.bin"], Choices(config=sdxl.folder))
    schedule, sampling = noise_schedule(source.checkpoint), default_sampling(source.checkpoint)
    prediction, zero_snr, spacing, by = expected
    assert (schedule.prediction_type, schedule.rescale_betas_zero_snr) == (prediction, zero_snr)
    assert (sampling.sampler, sampling.spacing) == ("euler", spacing)
    assert source.decisions["prediction type"] == f"{prediction}, by the {by}"
    assert (source.decisions["family"], source.decisions["layout"]) == (STABLE_DIFFUSION_XL, "single file")


def test_the_scheduler_of_a_turbo_is_that_of_the_named_folder(sdxl, tmp_path):
    """Its weights look like the base's."""
    turbo = shutil.copytree(sdxl.folder, tmp_path / "turbo")
    config = json.loads((turbo / "scheduler" / "scheduler_config.json").read_text())
    config |= {"_class_name": "EulerAncestralDiscreteScheduler", "timestep_spacing": "trailing"}
    (turbo / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    sampling = default_sampling(load_single_file(sdxl.file, turbo))
    assert (sampling.sampler, sampling.spacing) == ("euler_a", "trailing")


def test_weights_of_a_large_file_stay_where_they_lie(sdxl, tmp_path, monkeypatch):
    """In float16, network by network, and mapped into memory; what is not float16 is not rounded."""
    half = {
        name: t.half() if t.is_floating_point() and "first_stage" not in name else t
        for name, t in load_file(sdxl.file).items()
    }
    save_file(half, tmp_path / "half.safetensors")
    mapped = load_file(tmp_path / "half.safetensors")
    monkeypatch.setattr(original_layout, "load_file", lambda path: mapped)
    assert load_single_file(tmp_path / "half.safetensors", sdxl.folder).unet.dtype == torch.float32
    monkeypatch.setattr(stored, "LARGE", 0)
    base = load_single_file(tmp_path / "half.safetensors", sdxl.folder)
    assert [getattr(base, name).dtype for name in sdxl.networks] == [
        torch.float16,
        torch.float32,
        torch.float16,
        torch.float16,
    ]
    places = {tensor.data_ptr() for tensor in mapped.values()}
    assert all(parameter.data_ptr() in places for parameter in base.unet.parameters())


def test_the_shipped_tokenizer_is_clips():
    """Ids that are documented in many places: "a photo of an astronaut riding a horse on mars"."""
    tokenizer = clip_tokenizer()
    assert (len(tokenizer), tokenizer.model_max_length) == (49408, 77)
    ids = tokenizer("a photo of an astronaut riding a horse on mars")["input_ids"]
    assert ids == [49406, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, 49407]


def test_sdxls_second_tokenizer_differs_in_what_it_pads_with(tmp_path):
    """A pad token is a special one, so the second tower reads "!" as padding, as with the published folder."""
    first, second = clip_tokenizer(), clip_tokenizer("!")
    for texts in ("a horse", "naïve 東京"):
        assert first(texts)["input_ids"] == second(texts)["input_ids"]
    padded = [tokenizer("a!", padding="max_length")["input_ids"] for tokenizer in (first, second)]
    assert padded == [[49406, 320, exclamation, 49407] + 73 * [pad] for exclamation, pad in ((256, 49407), (0, 0))]
    runtime = ClipTokenizer(save_tokenizer(second, tmp_path / "tokenizer_2.json"))
    assert runtime.encode("a! horse") == second("a! horse")["input_ids"][1:-1]


def shipped(family, config):
    """Networks of the shipped configuration at true size, without weights."""
    return {name: original_layout.empty_network(part.network, config / name) for name, part in PARTS[family].items()}


@pytest.mark.parametrize(
    ("family", "config", "counts"),
    [
        (STABLE_DIFFUSION, SD15, (859_520_964, 83_653_863, 123_060_480)),
        (STABLE_DIFFUSION_XL, SDXL, (2_567_463_684, 83_653_863, 123_060_480, 694_659_840)),
    ],
)
def test_the_shipped_configurations_are_the_published_ones(family, config, counts):
    """Parameters of the published networks."""
    networks = shipped(family, config)
    assert tuple(sum(p.numel() for p in network.parameters()) for network in networks.values()) == counts
    activations = [network.config.hidden_act for name, network in networks.items() if name.startswith("text")]
    assert activations == ["quick_gelu", "gelu"][: len(activations)]


@pytest.mark.parametrize(
    ("family", "config", "kind", "tensors"),
    [(STABLE_DIFFUSION, SD15, "v1", None), (STABLE_DIFFUSION_XL, SDXL, "xl_base", 2515)],
)
def test_the_original_names_are_those_of_the_published_file(family, config, kind, tensors):
    """At true size, without weights: diffusers knows every name and tells the family by one of them.

    2515: from memory, the tensors of `sd_xl_base_1.0.safetensors`; no such file was at hand.
    """
    networks = {name: network.to("meta") for name, network in shipped(family, config).items()}
    original = original_state(networks, layers=2)
    assert tensors in (None, len(original))
    assert CHECKPOINT_KEY_NAMES[kind] in original
    assert infer_diffusers_model_type(original) == kind
    assert exportable_family({name: tuple(t.shape) for name, t in original.items()}, config) == family
    for name, part in PARTS[family].items():
        state = {key: tensor for key, tensor in original.items() if not IGNORED.fullmatch(key)}
        converted = original_layout.weights_of(state, part, networks[name], config)
        expected = networks[name].state_dict()
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
        save_file(ldm_vae_state(vae.state_dict()) if kind == "original" else vae.state_dict(), path)
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


def test_families_are_told_by_keys(case, tmp_path):
    assert exportable_family(read_shapes(case.file), case.file) == case.family


@pytest.mark.parametrize(
    ("match", "shapes"),
    [
        ("reads 9 channels", {"conv_in.weight": (320, 9, 3, 3), "conv_out.weight": (4, 320, 3, 3)}),
        (
            "reads 9 channels",
            {
                f"model.diffusion_model.{name}.weight": shape
                for name, shape in (
                    ("input_blocks.0.0", (320, 9, 3, 3)),
                    ("out.2", (4, 320, 3, 3)),
                    ("label_emb.0.0", (1, 1)),
                )
            },
        ),
        ("reads its guidance", {"conv_in.weight": (320, 4, 3, 3), "time_embedding.cond_proj.weight": (320, 256)}),
        ("no denoiser of a known family .*first keys: text", {"text": (1,)}),
        ("a Flux model", {"double_blocks.0.img_attn.norm.key_norm.scale": (128,)}),
        ("a Stable Diffusion 3 model", {"model.diffusion_model.joint_blocks.0.context_block.mlp.fc1.weight": (1,)}),
    ],
)
def test_other_models_are_refused(match, shapes, tmp_path):
    with pytest.raises(InputError, match=match):
        exportable_family(shapes, tmp_path)


@pytest.mark.parametrize(
    ("key", "match"),
    [
        ("conditioner.embedders.0.model.text_projection", "is the refiner of SDXL.*; take the base"),
        ("cond_stage_model.model.token_embedding.weight", "Stable Diffusion 2; take its diffusers folder"),
        ("edm_mean", "is a Playground 2.5"),
        ("edm_vpred.sigma_max", "is a CosXL"),
    ],
)
def test_relatives_are_refused(key, match, sdxl, tmp_path):
    with pytest.raises(InputError, match=match):
        load_single_file(sdxl.save(tmp_path / "relative.safetensors", **{key: torch.zeros(1)}))


def test_a_single_file_without_a_part_says_which(case, tmp_path):
    file = case.save(tmp_path / "pruned.safetensors", dropped=["first_stage_model."])
    with pytest.raises(InputError, match="has no vae"):
        load_single_file(file)
    shutil.copy(case.file, tmp_path / "dreams.ckpt")
    with pytest.raises(InputError, match="is a pickle"):
        open_source(tmp_path / "dreams.ckpt")


def test_keys_that_are_missing_or_have_no_place_are_listed(sdxl, tmp_path):
    dropped = ["first_stage_model.quant_conv.bias", "conditioner.embedders.1.model.ln_final.weight"]
    added = {f"model.diffusion_model.input_blocks.{i}.9.weight": torch.ones(1) for i in range(10)}
    added |= {"conditioner.embedders.1.model.transformer.resblocks.2.ln_1.bias": torch.ones(40)}
    with pytest.raises(InputError) as caught:
        load_single_file(sdxl.save(tmp_path / "odd.safetensors", dropped, **added), sdxl.folder)
    message = str(caught.value)
    assert "2 missing: text_encoder_2.text_model.final_layer_norm.weight, vae.quant_conv.bias" in message
    assert (
        "11 unknown: conditioner.embedders.1.model.transformer.resblocks.2.ln_1.bias, model.diffusion_model" in message
    )
    file = sdxl.save(tmp_path / "lacking.safetensors", ["model.diffusion_model.label_emb.0.2.weight"])
    with pytest.raises(InputError, match=r"lacks model\.diffusion_model\.label_emb\.0\.2\.weight"):
        load_single_file(file, sdxl.folder)


@pytest.mark.parametrize("of", list(itertools.permutations(["sd15", "sdxl"])), ids="-".join)
def test_the_configuration_of_another_model_is_refused(of, request, instant_id):
    """Of the other family, and of the same in another size."""
    model, config = map(request.getfixturevalue, of)
    with pytest.raises(InputError):
        open_source(model.file, [instant_id / "ip-adapter.bin"], Choices(config=config.folder))
    with pytest.raises(InputError, match=r"cannot read the checkpoint|has not the keys"):
        open_source(model.file, [instant_id / "ip-adapter.bin"])
