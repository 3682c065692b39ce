"""Published IP-Adapters: told by their keys, equal to diffusers' own, tokens and scales as inputs of one engine."""

import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModelWithProjection

from bolid_export.graphs import bind_graphs
from bolid_export.sources import Choices, model_sizes, open_source
from bolid_export.tracing.stream import to_onnx
from bolid_export.verification.metrics import cosine
from bolid_export.verify import load_engines
from bolid_sdk.contracts import PARTS
from bolid_sdk.errors import InputError
from bolid_training.model.adapter import ZERO_TOKENS

KINDS = ("base", "plus", "full", pytest.param("face_id", marks=pytest.mark.slow))
LEAST = 0.9999


@dataclass(frozen=True, kw_only=True)
class Case:
    """Engines of the model with one adapter, and diffusers' pipeline with the same file."""

    engines: dict
    pipe: StableDiffusionPipeline
    sizes: object

    def references(self, random, count):
        """Pixels, or what a face network says of them."""
        side = self.sizes.image_size
        shape = (count, 3, side, side) if side else (count, self.sizes.patch_width)
        return random.standard_normal(shape).astype(np.float32)

    def engine_tokens(self, pixels):
        """Both branches [2, N, C], as the runtime makes them."""
        if not self.sizes.image_size:
            views = np.stack([np.zeros_like(pixels), pixels])[:, :, None]
            return self.run("identity_encoder", patch_tokens=views)
        patches = self.run("image_encoder", pixels=np.concatenate([np.zeros_like(pixels), pixels]))
        if self.sizes.patch_tokens == 1:
            patches[: len(pixels)] = 0
        return self.run("identity_encoder", patch_tokens=patches.reshape(2, len(pixels), *patches.shape[1:]))

    def run(self, graph, **inputs):
        (output,) = self.engines[graph].run(inputs).values()
        return output

    def denoise(self, sample, text, tokens, scale, guidance):
        """x0 with coefficients that make it the guided output itself."""
        zero, layers = np.zeros_like(sample), self.sizes.cross_attention_layers
        outputs = self.engines["denoiser"].run(
            {
                "sample": sample,
                "previous_x0": zero,
                "noise": zero,
                "timestep": np.array([301.0], np.float32),
                "coefficients": np.array([1, 0, 1, 0, 0, 0, 0], np.float32),
                "guidance": np.array([guidance], np.float32),
                "encoder_hidden_states": text,
                "identity_tokens": tokens,
                "identity_scale": np.full(layers, scale, np.float32),
            }
        )
        return outputs["x0"]

    @torch.no_grad()
    def diffusers_output(self, sample, text, pixels, scale, guidance):
        self.pipe.set_ip_adapter_scale(scale)
        given = torch.from_numpy(pixels)
        if self.sizes.image_size:
            embeds = self.pipe.prepare_ip_adapter_image_embeds([given], None, "cpu", 1, True)
        else:
            embeds = [torch.stack([torch.zeros_like(given), given])]
        first, last = self.pipe.unet(
            torch.from_numpy(sample).repeat(2, 1, 1, 1),
            301,
            torch.from_numpy(text),
            added_cond_kwargs={"image_embeds": embeds},
        ).sample.chunk(2)
        return (first + guidance * (last - first)).numpy()


@pytest.fixture(scope="module")
def denoisers(tmp_path_factory):
    """The one engine that every kind runs with: they differ in the number of tokens, which is an input's size."""
    return {}, tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module", params=KINDS)
def case(request, sd15_folder, image_encoder_folder, ip_adapters, denoisers):
    file = ip_adapters[request.param]
    model = open_source(sd15_folder, [file], Choices(image_encoder=image_encoder_folder)).checkpoint
    sizes = model_sizes(model)
    graphs = bind_graphs(model, sizes)
    traced, folder = denoisers
    engines = {}
    for name in graphs.keys() & {"image_encoder", "identity_encoder", "denoiser"}:
        key = sharing(name, request.param, model)
        if key not in traced:
            (folder / key).mkdir()
            path = to_onnx(graphs[name], folder / key, size_step=sizes.size_step, vae_factor=sizes.vae_factor)
            traced[key] = load_engines({name: path}, {name: graphs[name].spec})[name]
        engines[name] = traced[key]
    return Case(engines=engines, pipe=plain_pipeline(sd15_folder, image_encoder_folder, file), sizes=sizes)


def sharing(graph, kind, model):
    """Kinds share the denoiser unless they change the UNet, and the image encoder if they read the same of it."""
    own = {"denoiser": kind == "face_id", "image_encoder": model.adapter.reads}
    return f"{graph}-{own.get(graph, kind)}"


def plain_pipeline(folder, image_encoder, file):
    pipe = StableDiffusionPipeline.from_pretrained(
        folder,
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(image_encoder),
        safety_checker=None,
        requires_safety_checker=False,
    )
    pipe.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder=None)
    return pipe


@pytest.mark.parametrize(("references", "scale", "guidance"), [(1, 1.0, 3.0), (1, 0.3, 1.0), (2, 1.0, 3.0)])
def test_the_engine_equals_diffusers(case, references, scale, guidance):
    """One engine, other numbers of tokens and other scales, no rebuild."""
    random = np.random.default_rng(0)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731
    sizes = case.sizes
    pixels, sample = case.references(random, references), normal(1, 4, 8, 8)
    text = normal(2, 77, sizes.context_width)
    tokens = case.engine_tokens(pixels)
    assert tokens.shape == (2, references * sizes.identity_tokens, sizes.context_width)
    found = case.denoise(sample, text, tokens, scale, guidance)
    expected = case.diffusers_output(sample, text, pixels, scale, guidance)
    assert cosine(found, expected) >= LEAST
    np.testing.assert_allclose(found, expected, atol=2e-4)
    without = case.denoise(sample, text, tokens, 0.0, guidance)
    assert cosine(without, expected) < LEAST, "else the adapter has no part in it"


def test_pickles_of_tensors_are_read_like_safetensors(sd15_folder, image_encoder_folder, ip_adapters, tmp_path):
    """The published `.bin` files are two nested dictionaries."""
    nested = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in load_file(ip_adapters["plus"]).items():
        group, _, name = key.partition(".")
        nested[group][name] = tensor
    torch.save(nested, tmp_path / "plus.bin")
    source = open_with(sd15_folder, image_encoder_folder, tmp_path / "plus.bin")
    expected = open_with(sd15_folder, image_encoder_folder, ip_adapters["plus"])
    assert source.decisions["identity"] == "IP-Adapter Plus, plus.bin"
    for one, other in zip(source.checkpoint.adapter.layers, expected.checkpoint.adapter.layers, strict=True):
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def open_with(folder, image_encoder, *adapters):
    return open_source(folder, adapters, Choices(image_encoder=image_encoder))


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


def test_mistakes_are_named(sd15_folder, image_encoder_folder, ip_adapters, tmp_path):
    open_one = lambda *files: open_with(sd15_folder, image_encoder_folder, *files)  # noqa: E731
    state = load_file(ip_adapters["base"])
    file = tmp_path / "adapter.safetensors"

    def refused(state, match):
        save_file(state, file)
        with pytest.raises(InputError, match=match):
            open_one(file)

    refused({"a.b": state["image_proj.norm.bias"]}, r"not an adapter: .*found a\.b")
    missing = {key: tensor for key, tensor in state.items() if "to_v_ip" not in key}
    refused(missing | {"ip_adapter.99.to_k_ip.weight": torch.zeros(1)}, "missing.*1 unknown: ip_ad")
    wide = {key: torch.zeros(t.shape[0], 2048) if "_ip." in key else t for key, t in state.items()}
    refused(wide, r"text is 2048 \(SDXL\) wide, the model's 64")
    narrow = state | {"image_proj.proj.weight": torch.zeros(256, 48)}
    refused(narrow, "reads embeddings 48 wide, the encoder's are 24")
    with pytest.raises(InputError, match=r"IP-Adapter FaceID \(embedding\), IP-Adapter Plus \(patches\)"):
        open_one(ip_adapters["face_id"], ip_adapters["plus"])
    with pytest.raises(InputError, match="FaceID Plus, which needs"):
        open_one(ip_adapters["face_id_plus"])
    torch.save({"image_proj": Evil()}, tmp_path / "evil.bin")
    with pytest.raises(InputError, match="more than tensors"):
        open_one(tmp_path / "evil.bin")
    with pytest.raises(InputError, match="no identity adapter"):
        open_one()
    with pytest.raises(InputError, match="no image encoder"):
        open_source(sd15_folder, [ip_adapters["base"]])


def test_the_second_ip_adapter_is_the_image_prompt(sd15_folder, image_encoder_folder, ip_adapters):
    source = open_with(sd15_folder, image_encoder_folder, ip_adapters["full"], ip_adapters["plus"])
    assert source.decisions["identity"].startswith("IP-Adapter full")
    assert source.decisions["image prompt"].startswith("IP-Adapter Plus")
    assert {"adapter/identity.safetensors", "adapter/image_prompt.safetensors"} <= source.hashes.keys()
    with pytest.raises(InputError, match=r"IP-Adapter \(pooled\), IP-Adapter Plus \(patches\)"):
        open_with(sd15_folder, image_encoder_folder, ip_adapters["base"], ip_adapters["plus"])
    with pytest.raises(InputError, match="two adapters of one kind"):
        open_with(sd15_folder, image_encoder_folder, *[ip_adapters["plus"]] * 3)


def test_a_folder_of_bolids_adapters_is_one_adapter(model_folder, tmp_path):
    """As `bolid-train fit` writes it: the same as each of its files by itself."""
    bare = shutil.copytree(model_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("adapter"))
    folder = model_folder / "adapter"
    together = open_source(bare, [folder])
    names = ("identity.safetensors", "image_prompt.safetensors", "pose_guider")
    one_by_one = open_source(bare, [folder / name for name in names])
    assert together.decisions == one_by_one.decisions
    assert together.hashes == one_by_one.hashes
    assert together.decisions["identity"].startswith("BoLID")
    assert together.checkpoint.adapter.pose_guider is not None
    assert "pose estimator" not in together.decisions
    shutil.rmtree(bare / "pose_estimator")
    blind = open_source(bare, [folder])
    assert blind.decisions["pose estimator"].startswith("none: the whole reference is read in place of each part")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"or a folder of BoLID's adapters with identity\.safetensors"):
        open_source(bare, [tmp_path / "empty"])


@torch.no_grad()
def test_tokens_of_zeros_that_a_file_asks_for_come_after_the_learned_ones(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "zeros")
    file = folder / "adapter" / "identity.safetensors"
    save_file(load_file(file) | {ZERO_TOKENS: torch.tensor([3])}, file)
    plain, padded = (open_source(which).checkpoint for which in (model_folder, folder))
    sizes, count = model_sizes(padded), model_sizes(plain).identity_tokens
    assert sizes.identity_tokens == count + 3
    graph = bind_graphs(padded, sizes)["identity_encoder"]
    path = to_onnx(graph, tmp_path, size_step=sizes.size_step, vae_factor=sizes.vae_factor)
    shape = (2, PARTS, sizes.patch_tokens, sizes.patch_width)
    patches = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    parts = np.tile(np.arange(PARTS), (2, 1))
    engine = load_engines({"identity_encoder": path}, {"identity_encoder": graph.spec})["identity_encoder"]
    tokens = engine.run({"patch_tokens": patches, "parts": parts})["identity_tokens"]
    expected = plain.adapter.identity_encoder(torch.from_numpy(patches), torch.from_numpy(parts))
    np.testing.assert_allclose(tokens[:, :count], expected, atol=1e-5)
    assert tokens.shape[1] == count + 3
    assert not tokens[:, count:].any()


@pytest.mark.parametrize("said", [[-1], [81], [1, 2], [1.5], [float("nan")]])
def test_a_number_of_zeros_that_cannot_be_is_refused(model_folder, tmp_path, said):
    folder = shutil.copytree(model_folder, tmp_path / "zeros")
    file = folder / "adapter" / "identity.safetensors"
    save_file(load_file(file) | {ZERO_TOKENS: torch.tensor(said)}, file)
    with pytest.raises(InputError, match="one whole number from 0 to 80"):
        open_source(folder)
