"""InstantID and PuLID on SDXL: told by their keys, equal to the published arithmetic, modes and scales as inputs.

What they are compared with is written here from the published code: its Resampler, encoders and attention, on the plain
UNet and ControlNet of diffusers.
"""

import math
import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from bolid_export.graphs import bind_graphs
from bolid_export.pipeline import Target, export_bundle
from bolid_export.precision import islands, lower, watch_peaks
from bolid_export.sources import model_sizes, open_source
from bolid_export.sources.adapter_kinds import INSTANT_ID, PULID, PULID_1_1
from bolid_export.sources.adapters import assign_roles, attach_adapters, open_adapter
from bolid_export.tracing.stream import to_onnx
from bolid_export.verification.metrics import cosine
from bolid_export.verification.torch_engine import TorchEngine
from bolid_export.verify import load_engines
from bolid_sdk import Face, Generator, Sampling
from bolid_sdk.errors import InputError, PoseError
from bolid_sdk.orthogonal import ORTHOGONALITY

LEAST = {"fp32": 0.9999, "fp16": 0.999}
KINDS = ("instant_id", "pulid_v1", "pulid_v1.1")
GUIDANCE = 3.0


def layer_norm(x, state, name):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def linear(x, state, name):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def published_block(x, latents, state, layer):
    """PerceiverAttention and FeedForward of IP-Adapter's Resampler, heads 64 wide, each with its residual."""
    split = lambda t: t.unflatten(-1, (-1, 64)).transpose(1, 2)  # noqa: E731
    context, normed = layer_norm(x, state, f"{layer}.0.norm1"), layer_norm(latents, state, f"{layer}.0.norm2")
    q = split(linear(normed, state, f"{layer}.0.to_q"))
    k, v = linear(torch.cat([context, normed], dim=1), state, f"{layer}.0.to_kv").chunk(2, dim=-1)
    weights = torch.softmax(q @ split(k).transpose(-1, -2) / math.sqrt(64), dim=-1)
    latents = latents + linear((weights @ split(v)).transpose(1, 2).flatten(2), state, f"{layer}.0.to_out")
    hidden = F.gelu(linear(layer_norm(latents, state, f"{layer}.1.0"), state, f"{layer}.1.1"))
    return latents + linear(hidden, state, f"{layer}.1.3")


def published_resampler(embedding, state):
    """InstantID's: [B, 512] -> [B, 16, C]."""
    x, latents = linear(embedding[:, None], state, "proj_in"), state["latents"].repeat(len(embedding), 1, 1)
    for index in range(4):
        latents = published_block(x, latents, state, f"layers.{index}")
    return layer_norm(linear(latents, state, "proj_out"), state, "norm_out")


def published_perceptron(x, state, name):
    for index in (0, 3):
        x = F.leaky_relu(layer_norm(linear(x, state, f"{name}.{index}"), state, f"{name}.{index + 1}"), 0.01)
    return linear(x, state, f"{name}.6")


def published_id_encoder(embedding, levels, state):
    """PuLID v1: [B, 1280] and five [B, 577, D] -> [B, 10, C]."""
    tokens = [published_perceptron(embedding, state, "body").reshape(len(embedding), 5, -1)]
    for index, level in enumerate(levels):
        patches = published_perceptron(level[:, 1:], state, f"mapping_patch_{index}").mean(1, keepdim=True)
        tokens.append(published_perceptron(level[:, :1], state, f"mapping_{index}") + patches)
    return torch.cat(tokens, dim=1)


def published_id_former(embeddings, levels, state):
    """PuLID v1.1: [B, V, 1280] and five [B, V * 577, D] -> [B, 32, C]."""
    width = state["latents"].shape[-1]
    faces = published_perceptron(embeddings, state, "id_embedding_mapping").reshape(len(embeddings), -1, width)
    latents = torch.cat([state["latents"].repeat(len(embeddings), 1, 1), faces], dim=1)
    for index, level in enumerate(levels):
        context = torch.cat([faces, published_perceptron(level, state, f"mapping_{index}")], dim=1)
        for block in (2 * index, 2 * index + 1):
            latents = published_block(context, latents, state, f"layers.{block}")
    return latents[:, :32] @ state["proj_out"]


class PublishedAttention(nn.Module):
    """IPAttnProcessor, which IDAttnProcessor is without ORTHO; `settings` are what PuLID's code has as globals."""

    def __init__(self, key, value, settings):
        super().__init__()
        self.key, self.value, self.settings = key, value, settings

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        out = self.attend(attn, query, attn.to_k(context), attn.to_v(context))
        if self.key is not None:
            out = self.add_identity(attn, query, out)
        return attn.to_out[0](out)

    def attend(self, attn, query, key, value):
        weights = attn.get_attention_scores(query, attn.head_to_batch_dim(key), None)
        return attn.batch_to_head_dim(torch.bmm(weights, attn.head_to_batch_dim(value)))

    def add_identity(self, attn, query, out):
        tokens, scale, ortho, num_zero = (self.settings[name] for name in ("tokens", "scale", "ortho", "num_zero"))
        tokens = torch.cat([tokens, torch.zeros(len(tokens), num_zero, tokens.shape[-1])], dim=1)
        key, value = F.linear(tokens, self.key), F.linear(tokens, self.value)
        identity = self.attend(attn, query, key, value)
        projection = (out * identity).sum(-2, keepdim=True) / (out * out).sum(-2, keepdim=True) * out
        if ortho == "v1":
            identity = identity - projection
        if ortho == "v2":
            attention = (query @ attn.head_to_batch_dim(key).transpose(-1, -2)).softmax(-1)
            first = attention.unflatten(0, (len(out), -1)).mean(1)[:, :, :5].sum(-1, keepdim=True)
            identity = identity + (first - 1) * projection
        return out + scale * identity


def published_state(file):
    """Flat names, whatever the file is."""
    if file.suffix == ".safetensors":
        return load_file(file)
    state = torch.load(file, weights_only=True)
    nested = any(isinstance(value, dict) for value in state.values())
    return {f"{group}.{name}": t for group, part in state.items() for name, t in part.items()} if nested else state


@dataclass(frozen=True, kw_only=True)
class Published:
    """The published networks of one kind with one file's weights."""

    kind: str
    state: dict
    unet: UNet2DConditionModel
    controlnet: ControlNetModel | None
    settings: dict

    @classmethod
    def open(cls, kind, folder, file):
        state, settings = published_state(file), {}
        unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
        ours = INSTANT_ID if kind == "instant_id" else PULID
        processors, layer = {}, 0
        for name in unet.attn_processors:
            own = (None, None)
            if name.endswith("attn2.processor"):
                own = tuple(state[ours.key_value.format(2 * layer + 1, kv)] for kv in "kv")
                layer += 1
            processors[name] = PublishedAttention(*own, settings)
        unet.set_attn_processor(processors)
        net = ControlNetModel.from_pretrained(file.parent / "ControlNetModel") if kind == "instant_id" else None
        return cls(kind=kind, state=state, unet=unet, controlnet=net and net.eval(), settings=settings)

    @torch.no_grad()
    def tokens(self, faces):
        """`faces`: the identity encoder's inputs, [B, V, ...]."""
        given = {name: torch.from_numpy(array) for name, array in faces.items()}
        embedding = given["patch_tokens"][:, :, 0]
        if self.kind == "instant_id":
            return published_resampler(embedding.mean(1), self.part("image_proj."))
        embedding, states = torch.cat([embedding, given["vision_embedding"]], -1), given["vision_states"]
        if self.kind == "pulid_v1.1":
            levels = [states[:, :, index].flatten(1, 2) for index in range(5)]
            return published_id_former(embedding, levels, self.part("id_adapter."))
        views = [
            published_id_encoder(embedding[:, view], states[:, view].unbind(1), self.part("id_adapter."))
            for view in range(embedding.shape[1])
        ]
        return torch.stack(views).mean(0)

    def part(self, prefix):
        return {name.removeprefix(prefix): t for name, t in self.state.items() if name.startswith(prefix)}

    @torch.no_grad()
    def output(self, inputs, tokens, ortho, num_zero):
        """Guided, as x0 of coefficients that say so. The ControlNet's text is the tokens, and nothing else."""
        given = {name: torch.from_numpy(array) for name, array in inputs.items()}
        self.settings.update(tokens=tokens, scale=given["identity_scale"][0], ortho=ortho, num_zero=num_zero)
        sample, timestep = given["sample"].repeat(2, 1, 1, 1), given["timestep"]
        added = {name: given[name] for name in ("text_embeds", "time_ids")}
        residuals = {}
        if self.controlnet is not None:
            down, mid = self.controlnet(
                sample,
                timestep,
                encoder_hidden_states=tokens,
                controlnet_cond=given["skeleton"],
                conditioning_scale=float(given["pose_scale"]),
                added_cond_kwargs=added,
                return_dict=False,
            )
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        text = given["encoder_hidden_states"]
        first, last = self.unet(sample, timestep, text, added_cond_kwargs=added, **residuals).sample.chunk(2)
        return (first + GUIDANCE * (last - first)).numpy()


@dataclass(frozen=True, kw_only=True)
class Case:
    published: Published
    graphs: dict
    sizes: object

    def faces(self, views, seed=0):
        """Nobody's, then somebody's, [2, views, ...]."""
        random = np.random.default_rng(seed)
        shapes = {"patch_tokens": (1, 512)}
        if self.sizes.vision_states:
            shapes |= {"vision_embedding": (768,), "vision_states": self.sizes.vision_states}
        seen = {name: random.standard_normal((views, *shape), np.float32) for name, shape in shapes.items()}
        return {name: np.stack([np.zeros_like(values), values]) for name, values in seen.items()}

    def inputs(self, tokens, scale, ortho, num_zero, seed=0):
        """The denoiser's, for one picture of 64 x 96 and two branches."""
        random = np.random.default_rng(seed)
        normal = lambda *shape: random.standard_normal(shape, np.float32)  # noqa: E731
        sizes, zeros = self.sizes, np.zeros((2, num_zero, tokens.shape[-1]), np.float32)
        sample = normal(1, 4, 8, 12)
        given = {
            "sample": sample,
            "previous_x0": np.zeros_like(sample),
            "noise": np.zeros_like(sample),
            "timestep": np.array([301.0], np.float32),
            "coefficients": np.array([1, 0, 1, 0, 0, 0, 0], np.float32),
            "guidance": np.array([GUIDANCE], np.float32),
            "encoder_hidden_states": normal(2, 77, sizes.context_width),
            "identity_tokens": np.concatenate([tokens, zeros], axis=1),
            "identity_scale": np.full(sizes.cross_attention_layers, scale, np.float32),
            "text_embeds": normal(2, sizes.pooled_width),
            "time_ids": np.tile(np.array([64, 96, 0, 0, 64, 96], np.float32), (2, 1)),
        }
        if sizes.vision_states:
            given["orthogonality"] = np.array(ORTHOGONALITY[ortho], np.float32)
        if sizes.identity_net:
            face = random.random((1, 3, 64, 96), np.float32)
            given |= {"skeleton": np.concatenate([face, face]), "pose_scale": np.array([0.8], np.float32)}
        return given


@pytest.fixture(scope="module")
def files(instant_id, pulid_files):
    return {"instant_id": instant_id / "ip-adapter.bin", **pulid_files}


@pytest.fixture(scope="module", params=KINDS)
def case(request, sdxl_folder, files):
    return open_case(request.param, sdxl_folder, files[request.param])


def open_case(kind, folder, file):
    model = open_source(folder, [file]).checkpoint
    sizes = model_sizes(model)
    return Case(published=Published.open(kind, folder, file), graphs=bind_graphs(model, sizes), sizes=sizes)


def agree(found, expected, least):
    assert found.shape == expected.shape
    assert cosine(found, expected) >= least


# scale, ortho, zeros: what a request may change between two calls
SETTINGS = [(1.0, "off", 0), (0.6, "v1", 16), (0.8, "v2", 8), (0.0, "v2", 0)]


def check(case, engines, precision):
    """Encoder and denoiser against the published arithmetic, with whatever a request may change."""
    published = case.published
    for views in (1, 2):
        faces = case.faces(views)
        (tokens,) = engines["identity_encoder"].run(faces).values()
        assert tokens.shape == (2, case.sizes.identity_tokens, case.sizes.context_width)
        if views == 1:  # the published v1.1 shows nobody once, however many pictures there are of somebody
            agree(tokens, published.tokens(faces).numpy(), LEAST[precision])
        agree(tokens[1:], published.tokens(faces).numpy()[1:], LEAST[precision])
    tokens, outputs = published.tokens(case.faces(1)), []
    settings = SETTINGS if case.sizes.vision_states else [(1.0, "off", 0), (0.3, "off", 0)]
    for scale, ortho, num_zero in settings:
        inputs = case.inputs(tokens.numpy(), scale, ortho, num_zero)
        outputs.append(engines["denoiser"].run(inputs)["x0"])
        agree(outputs[-1], published.output(inputs, tokens, ortho, num_zero), LEAST[precision])
    for other in outputs[1:]:
        assert cosine(outputs[0], other) < LEAST["fp32"], "else what was changed has no part in it"


def test_the_networks_are_the_published_ones(case):
    check(case, {name: TorchEngine(case.graphs[name]) for name in ("identity_encoder", "denoiser")}, "fp32")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_engines_are_the_published_networks(case, precision, tmp_path):
    files, units = {}, {"size_step": case.sizes.size_step, "vae_factor": 8}
    for name, samples in (("identity_encoder", case.faces(1)), ("denoiser", example(case))):
        graph = case.graphs[name]
        with watch_peaks([graph.network]) as peaks, torch.no_grad():
            graph(*(torch.from_numpy(samples[tensor]) for tensor in graph.spec.input_names))
        lowered = lower(graph, precision, islands(graph, peaks))
        files[name] = to_onnx(lowered, tmp_path, dtype=None, **units)
    check(case, load_engines(files, {name: case.graphs[name].spec for name in files}), precision)


def example(case):
    tokens = case.published.tokens(case.faces(1)).numpy()
    return case.inputs(tokens, 1.0, "v2", 0)


def test_a_text_that_says_nothing_is_no_division_by_zero(case):
    """SDXL's unconditional text is zeros: the published ORTHO would be NaN."""
    tokens = case.published.tokens(case.faces(1)).numpy()
    inputs = case.inputs(tokens, 1.0, "v1", 8)
    inputs["encoder_hidden_states"][0] = 0
    assert np.isfinite(TorchEngine(case.graphs["denoiser"]).run(inputs)["x0"]).all()


def test_what_lies_beside_or_is_named_is_the_identity_net(sdxl_folder, instant_id, tmp_path):
    beside = open_source(sdxl_folder, [instant_id / "ip-adapter.bin"])
    assert beside.decisions["identity"] == "InstantID, ip-adapter.bin"
    assert beside.decisions["identity net"] == "IdentityNet, ControlNetModel"
    assert beside.decisions["image encoder"] == "none: people are given as face embeddings, 512 wide"
    alone = shutil.copy(instant_id / "ip-adapter.bin", tmp_path / "other name.bin")
    bare = open_source(sdxl_folder, [alone])
    assert bare.decisions["identity net"].startswith("none; InstantID is published with one")
    assert not model_sizes(bare.checkpoint).identity_net
    named = open_source(sdxl_folder, [instant_id / "ControlNetModel", alone])
    assert named.hashes == beside.hashes
    assert {"adapter/identity.safetensors", "adapter/identity_net"} <= named.hashes.keys()
    sizes = model_sizes(named.checkpoint)
    assert sizes == model_sizes(beside.checkpoint)
    assert (sizes.identity_net, sizes.face_map, sizes.identity_tokens, sizes.patch_width) == (True, True, 16, 512)


def test_files_of_sdxls_70_layers_have_the_published_keys():
    """Counted from the published classes: Resampler of 4 blocks, 11 perceptrons, 6 perceptrons and 10 blocks."""
    block, perceptron, attention = 11, 10, 2 * 70
    assert len(INSTANT_ID.keys(70)) == 1 + 6 + 4 * block + attention
    assert len(PULID.keys(70)) == 11 * perceptron + attention
    assert len(PULID_1_1.keys(70)) == 2 + 6 * perceptron + 10 * block + attention
    assert "ip_adapter.139.to_v_ip.weight" in INSTANT_ID.keys(70)
    assert "id_adapter_attn_layers.139.id_to_v.weight" in PULID.keys(70) & PULID_1_1.keys(70)
    assert "id_adapter.mapping_patch_4.6.bias" in PULID.keys(70)
    assert "id_adapter.layers.9.0.to_kv.weight" in PULID_1_1.keys(70)


def refused(folder, *adapters, match):
    """As `open_source` attaches adapters, without opening what else a model has."""
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    with pytest.raises(InputError, match=match):
        attach_adapters(unet, None, assign_roles({}, [open_adapter(path) for path in adapters]))


def test_mistakes_are_named(sdxl_folder, sd15_folder, instant_id, pulid_files, tmp_path):
    pulid, net = pulid_files["pulid_v1.1"], instant_id / "ControlNetModel"
    refused(sdxl_folder, pulid, net, match="ControlNet, which goes with InstantID's adapter, not PuLID v1.1's")
    refused(sdxl_folder, pulid, instant_id / "ip-adapter.bin", match="both identity")
    refused(sdxl_folder, net, match="no identity adapter")
    state, file = load_file(pulid), tmp_path / "adapter.safetensors"
    lacking = {name: tensor for name, tensor in state.items() if "mapping_3.4" not in name}
    save_file(lacking | {"id_adapter.extra": torch.zeros(1)}, file)
    missing = "2 missing: id_adapter.mapping_3.4.bias, id_adapter.mapping_3.4.weight; 1 unknown: id_adapter.extra"
    refused(sdxl_folder, file, match=missing)
    narrow = state | {"id_adapter.mapping_0.3.weight": torch.zeros(32, 31)}
    save_file(narrow, file)
    refused(sdxl_folder, file, match=r"no PuLID v1\.1: .*mapping_0\.3\.weight")
    save_file(state | {"id_adapter.id_embedding_mapping.0.weight": torch.zeros(48, 1024)}, file)
    refused(sdxl_folder, file, match=r"id_embedding_mapping\.0\.weight is \(48, 1024\), expected 1280")
    wide = {name: torch.zeros(t.shape[0], 2048) if "id_to" in name else t for name, t in state.items()}
    save_file(wide, file)
    refused(sd15_folder, file, match=r"text is 2048 \(SDXL\) wide, the model's 64")
    save_file({name: t for name, t in state.items() if "id_adapter." not in name}, file)
    refused(sdxl_folder, file, match="id_adapter_attn_layers")
    torch.save({"id_adapter.body.0.weight": print}, tmp_path / "evil.bin")
    refused(sdxl_folder, tmp_path / "evil.bin", match="more than tensors")


def test_an_identity_net_that_does_not_fit_is_refused(sdxl_folder, sd15_folder, instant_id, tmp_path):
    adapter = shutil.copy(instant_id / "ip-adapter.bin", tmp_path / "ip-adapter.bin")
    other = ControlNetModel.from_unet(UNet2DConditionModel.from_pretrained(sd15_folder / "unet"))
    other.save_pretrained(tmp_path / "sd15")
    refused(sdxl_folder, adapter, tmp_path / "sd15", match="does not fit this model: it has .*addition_embed_type None")
    damaged = shutil.copytree(instant_id / "ControlNetModel", tmp_path / "damaged")
    weights = damaged / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    del state["controlnet_mid_block.bias"]
    save_file(state, weights)
    refused(sdxl_folder, adapter, damaged, match="1 missing: controlnet_mid_block.bias")


def picture(generator, person, **options):
    sampling = Sampling(steps=2, guidance=3.0)
    return np.asarray(generator(person, "a person", seed=1, sampling=sampling, **options).image, int)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["instant_id", "pulid_v1"])
def test_a_bundle_draws_a_face_that_is_given_as_numbers(kind, sdxl_folder, files, tmp_path):
    """From files to pictures; what a request changes needs no other bundle."""
    source = open_source(sdxl_folder, [files[kind]])
    bundle = export_bundle(source, Target(folder=tmp_path / kind, precision="fp32", licence="unknown"))
    generator, sizes = Generator(bundle.path, backend="onnxruntime"), bundle.manifest.sizes
    published = Published.open(kind, sdxl_folder, files[kind])
    random = np.random.default_rng(0)
    face = {"patch_tokens": random.standard_normal((1, 1, 1, 512), np.float32)}
    if sizes.vision_states:
        face["vision_embedding"] = random.standard_normal((1, 1, 768), np.float32)
        face["vision_states"] = random.standard_normal((1, 1, *sizes.vision_states), np.float32)
        reference = Face(
            embedding=face["patch_tokens"][0, 0, 0],
            vision_embedding=5 * face["vision_embedding"][0, 0],
            vision_states=face["vision_states"][0, 0],
        )
        face["vision_embedding"] /= np.linalg.norm(face["vision_embedding"])
        changes = [{"ortho": "off"}, {"num_zero": 0}, {"identity_scale": 0.2}]
    else:
        reference = face["patch_tokens"][0, 0, 0]
        changes = [{"pose_scale": 0.0}, {"pose": None}, {"identity_scale": 0.0}]
    person = generator.identify(reference)
    np.testing.assert_allclose(person.tokens, published.tokens(face).numpy()[0], atol=1e-4)
    points = {"pose": random.uniform(0.3, 0.7, (5, 2))} if sizes.face_map else {}
    first = picture(generator, person, **points)
    for change in changes:
        assert np.abs(picture(generator, person, **points | change) - first).max() > 0, change
    np.testing.assert_array_equal(picture(generator, person, **points), first)
    if sizes.face_map:
        with pytest.raises(PoseError, match=r"expected \[5, 2\] or \[5, 3\]: left_eye"):
            picture(generator, person, pose=np.zeros((12, 2)))
        with pytest.raises(InputError, match="no orthogonal"):
            picture(generator, person, ortho="v1")
