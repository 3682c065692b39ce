"""A bundle of tiny random graphs with the true signatures: the whole runtime runs on it in milliseconds."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from bolid_sdk.bundle import Bundle, write_bundle
from bolid_sdk.clip_tokenizer import CLIP_PATTERN
from bolid_sdk.contracts import Sizes, graph_specs
from bolid_sdk.generator import Generator
from bolid_sdk.manifest import GraphEntry, Manifest, TokenizerEntry
from bolid_sdk.sampling import ResolvedSampling
from bolid_sdk.schedule import NoiseSchedule

SIZES = Sizes(
    latent_channels=4,
    vae_factor=8,
    context_width=16,
    image_size=16,
    patch_tokens=5,
    patch_width=8,
    identity_tokens=4,
    image_tokens=3,
    cross_attention_layers=3,
    pose_channels=(6, 8),
    pose_height=32,
    pose_width=32,
    native_height=64,
    native_width=64,
    min_side=32,
    max_side=128,
    deep_channels=5,
)
STANDING = np.array(
    [
        (0.6, 0.3), (0.4, 0.3), (0.65, 0.45), (0.35, 0.45), (0.66, 0.58), (0.34, 0.58),
        (0.56, 0.55), (0.44, 0.55), (0.56, 0.75), (0.44, 0.75), (0.56, 0.93), (0.44, 0.93),
    ],
    np.float32,
)  # fmt: skip
SEEN = (0.5 + 0.7 * (STANDING - 0.5)).astype(np.float32)  # far enough from the border for a closer look
SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
VOCABULARY = len(SPECIAL_TOKENS) + 2 * 256


class GraphBuilder:
    """Collects nodes and weights; `random` adds a weight, every call a node."""

    def __init__(self, spec, seed):
        self.spec, self.nodes, self.weights = spec, [], []
        self.generator = np.random.default_rng(seed)

    def __call__(self, kind, *inputs, output=None, **attributes):
        name = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def constant(self, values, dtype=None):
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def random(self, *shape):
        return self.constant(self.generator.normal(0, 0.3, shape), np.float32)

    def integers(self, *values):
        return self.constant(values, np.int64)

    def save(self, path):
        types = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}
        infos = [
            [helper.make_tensor_value_info(t.name, types[t.dtype], t.shape) for t in tensors]
            for tensors in (self.spec.inputs, self.spec.outputs)
        ]
        graph = helper.make_graph(self.nodes, self.spec.name, *infos, self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        onnx.checker.check_model(model)
        onnx.save(model, path)


def text_encoder(g):
    g("Gather", g.random(VOCABULARY, SIZES.context_width), "input_ids", output="encoder_hidden_states")


def pose_estimator(g):
    """Sees the standing person, the surer the more contrast there is; a bright picture shows a second one."""
    high = g("ReduceMax", "pixels", g.integers(1, 2, 3), keepdims=0)
    low = g("ReduceMin", "pixels", g.integers(1, 2, 3), keepdims=0)
    contrast = g("Clip", g("Sub", high, low), g.constant(0.0, np.float32), g.constant(1.0, np.float32))
    confidence = g("Expand", g("Unsqueeze", contrast, g.integers(1, 2)), g.integers(1, 12, 1))
    ones = g("Div", confidence, g("Add", confidence, g.constant(1e-9, np.float32)))
    positions = g("Add", g("Mul", g.constant(SEEN[None]), ones), g("Sub", ones, ones))
    g("Concat", positions, confidence, axis=2, output="keypoints")
    mean = g("ReduceMean", "pixels", g.integers(1, 2, 3), keepdims=0)
    bright = g("Cast", g("Greater", mean, g.constant(0.5, np.float32)), to=TensorProto.FLOAT)
    second = g("Mul", g("Unsqueeze", bright, g.integers(1, 2, 3)), g.constant(heatmaps(SEEN * (0.2, 1))[None]))
    g("Max", g("Add", second, g.constant(heatmaps(SEEN)[None])), second, output="heatmaps")


def heatmaps(points):
    grid = (np.arange(8) + 0.5) / 8
    squared = (grid[None, None] - points[:, 0, None, None]) ** 2 + (grid[None, :, None] - points[:, 1, None, None]) ** 2
    return np.exp(-squared / 0.01).astype(np.float32)


def image_encoder(g):
    half, width = SIZES.image_size // 2, SIZES.patch_width
    patches = g("Conv", "pixels", g.random(width, 3, half, half), strides=[half, half])
    tokens = g("Transpose", g("Reshape", patches, g.integers(0, width, 4)), perm=[0, 2, 1])
    start = g("ReduceMean", tokens, g.integers(1), keepdims=1)
    g("Concat", start, tokens, axis=1, output="patch_tokens")


def identity_encoder(g):
    parts = g("Unsqueeze", g("Gather", g.random(5, SIZES.patch_width), "parts"), g.integers(2))
    summary = g("ReduceMean", g("Tanh", g("Mul", "patch_tokens", parts)), g.integers(1, 2), keepdims=0)
    tokens_from(g, summary, SIZES.identity_tokens, "identity_tokens")


def image_projector(g):
    tokens_from(g, g("ReduceMean", "patch_tokens", g.integers(1), keepdims=0), SIZES.image_tokens, "image_tokens")


def tokens_from(g, summary, count, output):
    flat = g("MatMul", summary, g.random(SIZES.patch_width, count * SIZES.context_width))
    g("Reshape", flat, g.integers(0, count, SIZES.context_width), output=output)


def pose_guider(g):
    pooled = g("AveragePool", "skeleton", kernel_shape=[8, 8], strides=[8, 8])
    first = g("Conv", pooled, g.random(6, 3, 1, 1), output="pose_features_0")
    halved = g("AveragePool", first, kernel_shape=[2, 2], strides=[2, 2])
    g("Conv", halved, g.random(8, 6, 1, 1), output="pose_features_1")


def denoiser(g):
    """Its deep half is where pose, person and prompt come in; the shallow half adds what the sample is now."""
    inside, branches = guided_sample(g)
    inside = g("Add", inside, g("Conv", "pose_features_0", g.random(4, 6, 1, 1)))
    context = g("Add", g("ReduceMean", "encoder_hidden_states", g.integers(1), keepdims=0), weighted(g, "identity"))
    bias = g("MatMul", g("Add", context, weighted(g, "image")), g.random(SIZES.context_width, SIZES.deep_channels))
    hidden = g("Conv", inside, g.random(SIZES.deep_channels, 4, 1, 1))
    deep = g("Add", hidden, g("Unsqueeze", bias, g.integers(2, 3)), output="deep_feature")
    # The second level of pose features has to be used, or the checker drops the input.
    g("ReduceSum", "pose_features_1", g.integers(0, 1, 2, 3))
    sampling_step(g, deep, branches)


def denoiser_shallow(g):
    _, branches = guided_sample(g)
    change = g("Mul", "extrapolation", g("Sub", "deep_feature", "earlier_deep_feature"))
    sampling_step(g, g("Add", "deep_feature", change), branches)


def guided_sample(g):
    batch = g("Shape", "sample", start=0, end=1)
    branches = g("Div", g("Shape", "encoder_hidden_states", start=0, end=1), batch)
    repeats = g("Concat", branches, g.integers(1, 1, 1), axis=0)
    return g("Tile", g("Mul", coefficient(g, 0), "sample"), repeats), branches


def coefficient(g, index):
    return g("Gather", "coefficients", g.constant(index, np.int64))


def sampling_step(g, deep, branches):
    """The outermost layer, guidance and the sampler's update; the weights are the same in both graphs."""
    same = np.random.default_rng(99)
    weights = [g.constant(same.normal(0, 0.3, (4, width, 1, 1)), np.float32) for width in (SIZES.deep_channels, 4)]
    inside, _ = guided_sample(g)
    time = g("Mul", "timestep", g.constant(1e-3, np.float32))
    hidden = g("Add", g("Conv", deep, weights[0]), g("Conv", inside, weights[1]))
    output = g("Tanh", g("Add", hidden, time))
    k = [coefficient(g, index) for index in range(7)]
    shape = g("Concat", branches, g("Shape", "sample"), axis=0)
    stacked = g("Reshape", output, shape)
    first = g("Gather", stacked, g.constant(0, np.int64), axis=0)
    last = g("Gather", stacked, g.constant(-1, np.int64), axis=0)
    e = g("Add", first, g("Mul", "guidance", g("Sub", last, first)))
    g("Add", g("Mul", k[1], "sample"), g("Mul", k[2], e), output="x0")
    moved = g("Add", g("Mul", k[3], "sample"), g("Mul", k[4], e))
    g("Add", moved, g("Add", g("Mul", k[5], "previous_x0"), g("Mul", k[6], "noise")), output="next_sample")


def weighted(g, name):
    mean = g("ReduceMean", f"{name}_tokens", g.integers(1), keepdims=0)
    return g("Mul", mean, g("ReduceMean", f"{name}_scale", g.integers(0), keepdims=1))


def vae_decoder(g):
    colours = g("Conv", "latents", g.random(3, 4, 1, 1))
    scales = g.constant([1, 1, 8, 8], np.float32)
    g("Tanh", g("Resize", colours, "", scales, mode="nearest"), output="pixels")


def vae_encoder(g):
    pooled = g("AveragePool", "pixels", kernel_shape=[8, 8], strides=[8, 8])
    g("Conv", pooled, g.random(4, 3, 1, 1), output="latents")


BUILDERS = (
    text_encoder, pose_estimator, image_encoder, identity_encoder, image_projector, pose_guider, denoiser, vae_decoder,
    vae_encoder, denoiser_shallow,
)  # fmt: skip


def write_tokenizer(path):
    """CLIP's kind, of single bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*SPECIAL_TOKENS, *alphabet, *(f"{letter}</w>" for letter in alphabet)]
    model = models.BPE(
        {word: index for index, word in enumerate(words)}, [], unk_token=SPECIAL_TOKENS[1], end_of_word_suffix="</w>",
        continuing_subword_prefix="",
    )  # fmt: skip
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(CLIP_PATTERN), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    start, end = ((token, index) for index, token in enumerate(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.RobertaProcessing(end, start, trim_offsets=False, add_prefix_space=False)
    tokenizer.save(str(path))


def tiny_manifest(**changes) -> Manifest:
    specs = graph_specs(SIZES)
    values = {
        "name": "tiny",
        "family": "test",
        "precision": "fp32",
        "licence": "Apache-2.0",
        "sizes": SIZES,
        "noise_schedule": NoiseSchedule(),
        "sampling": ResolvedSampling(steps=4, guidance=3.0, sampler="dpm++2m", spacing="trailing"),
        "graphs": {name: GraphEntry(file=f"{name}.onnx", spec=spec) for name, spec in specs.items()},
        "tokenizer": TokenizerEntry(file="tokenizer.json", pad_id=0),
        "image_mean": (0.48, 0.46, 0.41),
        "image_std": (0.27, 0.26, 0.28),
    }
    return Manifest(**{**values, **changes})


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    specs = graph_specs(SIZES)
    for seed, build in enumerate(BUILDERS):
        builder = GraphBuilder(specs[build.__name__], seed)
        build(builder)
        builder.save(folder / f"{build.__name__}.onnx")
    write_tokenizer(folder / "tokenizer.json")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def tiny_bundle(tiny_files, tmp_path_factory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny", tiny_manifest(), tiny_files)


@pytest.fixture(scope="session")
def make_bundle(tiny_files, tmp_path_factory):
    """Writes a variant: `make_bundle(files={name: path}, **manifest_changes)`."""

    def make(files=None, **changes) -> Bundle:
        path = tmp_path_factory.mktemp("bundles") / "variant"
        return write_bundle(path, tiny_manifest(**changes), files or tiny_files)

    return make


@pytest.fixture(scope="session")
def generator(tiny_bundle) -> Generator:
    return Generator(tiny_bundle.path, threads=1)


def photograph(seed=0, size=(48, 64)) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 120, (size[1], size[0], 3), dtype=np.uint8))


@pytest.fixture(scope="session")
def reference(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "reference.png"
    photograph().save(path)
    return path


@pytest.fixture
def picture():
    """`picture(seed, size)`: a dark noisy RGB picture, in which the tiny estimator sees one person."""
    return photograph


@pytest.fixture(scope="session")
def standing() -> np.ndarray:
    return STANDING
