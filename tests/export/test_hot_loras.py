"""LoRAs that requests bring: the pictures of exported engines are those of diffusers with the same files through peft.

The files are written by the libraries whose names they have: diffusers, PEFT, and diffusers' conversion to kohya's.
"""

import copy
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_kohya
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file

from bolid_export.cli import main as export_main
from bolid_export.engines.shapes import Range, graph_profile, resolve_shapes
from bolid_export.engines.target import runtime_name
from bolid_export.graphs import bind_graphs
from bolid_export.int8.quantise import quantise
from bolid_export.package import build_manifest, bundle_files, save_tokenizers
from bolid_export.precision import lower
from bolid_export.sources import Choices, Lora, model_sizes, open_source
from bolid_export.to_onnx import example_inputs
from bolid_export.to_tensorrt import build_engine
from bolid_export.tracing.stream import to_onnx
from bolid_export.verification.metrics import cosine, psnr
from bolid_export.verification.torch_engine import TorchEngine
from bolid_sdk.built_engine import EngineKey
from bolid_sdk.bundle import file_sha256, write_bundle
from bolid_sdk.cli import doctor, infer
from bolid_sdk.conditioning import Conditioner
from bolid_sdk.errors import InputError
from bolid_sdk.generator import Generator
from bolid_sdk.graphs import Graphs
from bolid_sdk.identity import Identity
from bolid_sdk.sampling import NoiseSource, Sampling

PROMPT, SEED = "a person, sitting on a red sofa", 7
LEAST = 45  # dB, of 8-bit pictures
GUIDED = Sampling(steps=3, guidance=3.0)
RANK, ALPHA, LIMIT = 3, 1.5, 16
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"]
TRACED = ("text_encoder", "denoiser")
PEFT_PREFIX = "base_model.model."
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]


@pytest.fixture(scope="module")
def hot_source(model_folder):
    return open_source(model_folder, (), Choices(hot_lora_rank=LIMIT))


@pytest.fixture(scope="module")
def hot_sizes(hot_source):
    return model_sizes(hot_source.checkpoint)


@pytest.fixture(scope="module")
def hot_graphs(hot_source, hot_sizes):
    return bind_graphs(hot_source.checkpoint, hot_sizes)


@pytest.fixture(scope="module")
def bundle(hot_source, hot_sizes, hot_graphs, tmp_path_factory):
    """As the pipeline packages it, but other graphs stay in PyTorch (`HotGraphs`): tracing takes time."""
    staging = tmp_path_factory.mktemp("staging")
    steps = {"size_step": hot_sizes.size_step, "vae_factor": hot_sizes.vae_factor}
    for name, graph in hot_graphs.items():
        if name in TRACED:
            to_onnx(graph, staging, **steps)
        else:
            (staging / f"{name}.onnx").write_bytes(name.encode())
    save_tokenizers(hot_source.checkpoint, hot_sizes, staging)
    files, specs = bundle_files(staging), {name: graph.spec for name, graph in hot_graphs.items()}
    manifest = build_manifest(
        hot_source, hot_sizes, specs, files, precision="fp32", licence="CC0-1.0", verification={}, engines={}
    )
    return write_bundle(tmp_path_factory.mktemp("engines") / "hot", replace(manifest, golden=None), files)


class HotGraphs(Graphs):
    """The runtime's, with `others` in PyTorch."""

    def __init__(self, bundle, backend, others):
        super().__init__(bundle, backend)
        self.others = {name: TorchEngine(graph) for name, graph in others.items()}

    def __getitem__(self, name):
        return self.others.get(name) or super().__getitem__(name)

    def preload(self, names):
        super().preload(name for name in names if name not in self.others)


def generator_of(bundle, others, backend="onnxruntime"):
    generator = Generator(bundle.path, backend=backend, threads=1)
    generator._graphs = HotGraphs(bundle, generator._backend, others)
    generator._conditioner = Conditioner(bundle, generator._graphs)
    return generator


@pytest.fixture(scope="module")
def cold_graphs(hot_graphs):
    return {name: graph for name, graph in hot_graphs.items() if name not in TRACED}


@pytest.fixture(scope="module")
def generator(bundle, cold_graphs):
    return generator_of(bundle, cold_graphs)


@pytest.fixture(scope="module")
def nobody(bundle):
    """With an identity scale of zero, what is left is the base."""
    sizes = bundle.manifest.sizes
    tokens = np.zeros((sizes.identity_tokens, sizes.context_width), np.float32)
    return Identity(tokens=tokens, keypoints=None, aspect=1.0, digest=bundle.identity_digest)


@pytest.fixture
def draw(generator, nobody):
    return drawing(generator, nobody)


def drawing(generator, nobody):
    def draw(*loras, sampling=GUIDED, **options):
        options = {"seed": SEED, "pose": None, "identity_scale": 0.0, "sampling": sampling, **options}
        return np.asarray(generator(nobody, PROMPT, loras=loras, **options).image)

    return draw


@pytest.fixture(scope="module")
def pipe(model_folder):
    pipe = StableDiffusionPipeline.from_pretrained(model_folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def reference(pipe, sizes):
    """uint8 [H, W, 3] by diffusers, at the runtime's noise."""
    shape = (sizes.latent_channels, sizes.native_height // 8, sizes.native_width // 8)
    made = pipe(
        PROMPT,
        height=sizes.native_height,
        width=sizes.native_width,
        num_inference_steps=GUIDED.steps,
        guidance_scale=GUIDED.guidance,
        latents=torch.from_numpy(next(NoiseSource(seeds=[SEED], shape=shape).draws())),
        output_type="np",
    )
    return made.images[0]


def close(found, expected):
    """dB between a picture of the runtime and another one, or diffusers' [0, 1]."""
    scaled = expected / 255 if expected.dtype == np.uint8 else expected
    return psnr(found / 127.5 - 1, 2 * scaled - 1)


def config(targets, **changes):
    values = {"r": RANK, "lora_alpha": ALPHA, "target_modules": targets, "init_lora_weights": "gaussian", **changes}
    return LoraConfig(**values)


def randomise(network, seed):
    """A new LoRA changes nothing; random ones of a trained one's shape do."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if "lora_" in name:
            scale = 1 / parameter.shape[1] ** 0.5 if "lora_A" in name else 0.5
            parameter.data = scale * torch.randn(parameter.shape, generator=random)


def trained(network, targets, seed):
    """A LoRA's tensors under PEFT's names, without a prefix."""
    network = get_peft_model(copy.deepcopy(network), config(targets))
    randomise(network, seed)
    return {name.removeprefix(PEFT_PREFIX): t for name, t in get_peft_model_state_dict(network).items()}


@dataclass(frozen=True, kw_only=True)
class Styles:
    """A file in each style; what diffusers and kohya wrote of the UNet alone, for the pipeline; the text's tensors.

    transformers loads no LoRA with versions of peft that diffusers takes.
    """

    files: dict
    unet: dict
    text: dict


@pytest.fixture(scope="module")
def styles(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loras")
    texts = {style: trained(pipe.text_encoder, TEXT, seed) for seed, style in enumerate(("diffusers", "kohya"))}
    unets = {style: trained(pipe.unet, ATTENTION, seed) for seed, style in enumerate(("diffusers", "kohya"))}
    both, alone = {}, {}
    for made, part in ((both, texts), (alone, {})):
        target = folder / f"{len(part)} texts"
        made["diffusers"] = write_as_diffusers(target, unets["diffusers"], part.get("diffusers"))
        made["kohya"] = write_as_kohya(target, unets["kohya"], part.get("kohya", {}))
    network = get_peft_model(copy.deepcopy(pipe.unet), config(ATTENTION))
    randomise(network, 3)
    network.save_pretrained(folder / "peft")
    both["peft"] = folder / "peft" / "adapter_model.safetensors"
    return Styles(files=both, unet=alone, text=texts)


@pytest.fixture(scope="module")
def files(styles):
    return styles.files


def write_as_diffusers(folder, unet, text):
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ATTENTION}
    # diffusers wants no settings of what is not there
    texts = {"text_encoder_lora_layers": text, "text_encoder_lora_adapter_metadata": settings} if text else {}
    StableDiffusionPipeline.save_lora_weights(
        folder / "diffusers", unet_lora_layers=unet, unet_lora_adapter_metadata=settings, **texts
    )
    return folder / "diffusers" / "pytorch_lora_weights.safetensors"


def write_as_kohya(folder, unet, text):
    named = {f"unet.{name}": t for name, t in unet.items()}
    named |= {f"text_encoder.text_model.{name}": t for name, t in text.items()}
    (folder / "kohya").mkdir(parents=True)
    save_file(as_kohya(named), folder / "kohya" / "style.safetensors")
    return folder / "kohya" / "style.safetensors"


def as_kohya(state):
    """diffusers' conversion, which knows no alpha but the rank."""
    converted = convert_state_dict_to_kohya(state)
    return {name: torch.tensor(ALPHA) if name.endswith(".alpha") else tensor for name, tensor in converted.items()}


@contextmanager
def loaded(pipe, styles, weights):
    """The pipeline with LoRAs through peft."""
    unet, text = pipe.unet, pipe.text_encoder
    pipe.unet, pipe.text_encoder = copy.deepcopy(unet), copy.deepcopy(text)
    named = {style: weight for style, weight in weights.items() if style != "peft"}
    for style, weight in named.items():
        pipe.load_lora_weights(styles.unet[style].parent, weight_name=styles.unet[style].name, adapter_name=style)
        pipe.text_encoder = merged(pipe.text_encoder, styles.text[style], weight)
    if named:
        pipe.set_adapters(list(named), list(named.values()))
    if "peft" in weights:
        network = PeftModel.from_pretrained(pipe.unet, styles.files["peft"].parent)
        pipe.unet = scaled(network, weights["peft"]).merge_and_unload()
    yield pipe
    pipe.unet, pipe.text_encoder = unet, text


def merged(network, state, weight):
    network = get_peft_model(network, config(TEXT))
    set_peft_model_state_dict(network, {f"{PEFT_PREFIX}{name}": tensor for name, tensor in state.items()})
    return scaled(network, weight).merge_and_unload()


def scaled(network, weight):
    for module in network.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(weight)
    return network


def test_the_files_have_the_styles(files):
    keys = {style: set(load_file(file)) for style, file in files.items()}
    query = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert f"unet.{query}.lora_A.weight" in keys["diffusers"] or f"unet.{query}.lora.down.weight" in keys["diffusers"]
    assert f"lora_unet_{query.replace('.', '_')}.lora_down.weight" in keys["kohya"]
    assert "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha" in keys["kohya"]
    assert f"base_model.model.{query}.lora_A.weight" in keys["peft"]


@pytest.mark.parametrize("style", ["diffusers", "kohya", "peft"])
def test_a_request_draws_what_diffusers_draws_with_the_lora(style, draw, pipe, styles, files, hot_sizes):
    plain = reference(pipe, hot_sizes)
    assert close(draw(), plain) > LEAST
    with loaded(pipe, styles, {style: 0.8}):
        expected = reference(pipe, hot_sizes)
    assert close(draw((files[style], 0.8)), expected) > LEAST
    assert close(draw((files[style], 0.8)), plain) < LEAST - 10


def test_two_at_once_other_weights_and_none_again(draw, generator, pipe, styles, files, hot_sizes, monkeypatch):
    """Nothing is loaded or built again on the way, and nothing stays behind."""
    first = draw()
    monkeypatch.setattr(type(generator._graphs), "_load", None)
    kohya = generator.load_lora(files["kohya"])
    for weights in ({"diffusers": 0.7, "kohya": -0.4}, {"diffusers": 0.2, "kohya": 1.0}):
        with loaded(pipe, styles, weights):
            expected = reference(pipe, hot_sizes)
        found = draw((files["diffusers"], weights["diffusers"]), (kohya, weights["kohya"]))
        assert close(found, expected) > LEAST
    np.testing.assert_array_equal(draw(), first)
    np.testing.assert_array_equal(draw((kohya, 0.0)), first)


def test_steps_of_the_shallow_half_have_the_lora_too(model_folder, bundle, hot_graphs, nobody, files):
    """Against the same LoRA fused, both in PyTorch, whose engines pass over inputs that they do not have."""
    fused = open_source(model_folder, (), Choices(loras=(Lora(path=files["kohya"], weight=0.8),)))
    graphs = bind_graphs(fused.checkpoint, model_sizes(fused.checkpoint))
    sampling = Sampling(steps=8, guidance=3.0, caching="fast")
    expected = drawing(generator_of(bundle, graphs), nobody)(sampling=sampling)
    draw = drawing(generator_of(bundle, hot_graphs), nobody)
    assert close(draw((files["kohya"], 0.8), sampling=sampling), expected) > LEAST
    assert close(draw(sampling=sampling), expected) < LEAST - 10


def test_threads_with_different_loras_do_not_meet(draw, files):
    requests = [(), ((files["kohya"], 0.5),), ((files["peft"], 1.0),), ((files["kohya"], 0.5), (files["diffusers"], 1))]
    alone = [draw(*loras) for loras in requests]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda loras: draw(*loras), requests * 2))
    for index, picture in enumerate(together):
        np.testing.assert_array_equal(picture, alone[index % 4])


def test_openvino_draws_the_same(bundle, cold_graphs, nobody, draw, files, tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setenv("BOLID_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("BOLID_PRECISION", "f32")
    other = drawing(generator_of(bundle, cold_graphs, "openvino"), nobody)
    first = other()
    loras = ((files["kohya"], 0.5), (files["diffusers"], 1.0))
    assert close(other(*loras), draw(*loras)) > LEAST
    np.testing.assert_array_equal(other(), first)


def test_the_result_says_which_loras_made_it(generator, nobody, files):
    sampling = Sampling(steps=1, guidance=1.0)
    result = generator(nobody, PROMPT, pose=None, sampling=sampling, loras=[(files["kohya"], 0.5), files["peft"]])
    (first, second) = result.to_dict()["loras"]
    assert (first["file"], first["weight"], len(first["sha256"])) == ("style.safetensors", 0.5, 64)
    assert (second["file"], second["weight"]) == ("adapter_model.safetensors", 1.0)


def test_the_command_line(generator, nobody, draw, files, tmp_path, monkeypatch):
    """The random pose estimator would find anybody anywhere."""
    monkeypatch.setattr("bolid_sdk.generator.Generator", lambda *args, **kwargs: generator)
    monkeypatch.setattr("bolid_sdk.generator.identify", lambda *args: nobody)
    options = ["x.png", PROMPT, "--steps", 3, "--guidance", 3, "--seed", SEED, "--identity-scale", 0, "--pose", "none"]
    options += ["--lora", f"{files['kohya']}:0.7", "--lora", files["peft"], "-o", tmp_path / "out.png", "--json"]
    made = CliRunner().invoke(infer, [str(option) for option in options])
    assert made.exit_code == 0, made.stderr
    (result,) = json.loads(made.stdout)["results"]
    assert [lora["weight"] for lora in result["loras"]] == [0.7, 1.0]
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "out.png")), draw((files["kohya"], 0.7), files["peft"])
    )
    wrong = CliRunner().invoke(infer, ["x.png", PROMPT, "--lora", f"{files['kohya']}:nan"])
    assert (wrong.exit_code, len(wrong.stderr.splitlines())) == (2, 1)
    assert "no finite weight" in wrong.stderr


def test_a_file_that_changes_is_another_lora(draw, files, tmp_path):
    file = tmp_path / "style.safetensors"
    shutil.copy(files["kohya"], file)
    first = draw((file, 0.5))
    shutil.copy(files["peft"], file)
    shutil.copy(files["peft"].with_name("adapter_config.json"), tmp_path)
    np.testing.assert_array_equal(draw((file, 0.5)), draw((files["peft"], 0.5)))
    assert close(draw((file, 0.5)), first) < LEAST


def test_what_cannot_be_taken_is_one_message(generator, files, nobody, tmp_path):
    state = load_file(files["kohya"])
    file = tmp_path / "odd.safetensors"

    def refused(match, state=state, **options):
        save_file(state, file)
        with pytest.raises(InputError, match=match):
            generator(nobody, PROMPT, **{"loras": [file], **options})

    other = "lora_unet_down_blocks_2_attentions_1_proj_in"
    convolution = "lora_unet_up_blocks_1_resnets_0_conv1"
    for name in (other, convolution):
        unknown = {f"{name}.lora_down.weight": torch.ones(1, 4), f"{name}.lora_up.weight": torch.ones(4, 1)}
        refused(f"2 of {len(state) + 2} keys have no place in this model: {name}.lora_down.*fuse one", state | unknown)
    key = next(name for name in state if name.endswith("attn2_to_k.lora_down.weight"))
    refused("does not fit this model at unet.*expected .rank, 64.*this family", state | {key: torch.ones(RANK, 2048)})
    refused("NaN", state | {key: torch.full_like(state[key], torch.nan)})
    refused("no .safetensors", loras=[tmp_path / "odd.bin"])
    refused("cannot be read .No such file", loras=[tmp_path / "none.safetensors"])
    refused("weight nan; expected a finite number", loras=[(files["kohya"], float("nan"))])
    refused("no list; expected", loras=files["kohya"])
    many = [files[style] for style in ("diffusers", "kohya", "peft")] * 2
    refused("rank 18 together; this bundle takes up to 16: .*--hot-lora 18", loras=many)
    plain = Generator(backend="onnxruntime")
    for call in (lambda: plain("x.png", PROMPT, loras=[files["kohya"]]), lambda: plain.load_lora(files["kohya"])):
        with pytest.raises(InputError, match="takes no LoRAs at run time; export it with bolid-export --hot-lora RANK"):
            call()


@pytest.fixture(scope="module")
def denoiser_inputs(generator, hot_graphs, hot_sizes, files):
    """With the LoRA of a file, and without."""
    graph = hot_graphs["denoiser"]
    units = {"height": hot_sizes.size_step, "latent_height": hot_sizes.size_step // hot_sizes.vae_factor}
    inputs = dict(
        zip(graph.spec.input_names, example_inputs(graph.spec, {a: 3 * u for a, u in units.items()}), strict=True)
    )
    stacks = [generator._loras.stack(loras).of("denoiser") for loras in ([(files["kohya"], 1.0)], [])]
    return [
        tuple({**inputs, **{name: torch.from_numpy(array.copy()) for name, array in stack.items()}}.values())
        for stack in stacks
    ]


@torch.no_grad()
def agreement(found, expected, denoiser_inputs):
    """Cosines with a graph's answers to the same inputs, and of its answers with a LoRA and without."""
    with_lora, without = denoiser_inputs
    outputs = [(found(*inputs)[0].numpy(), expected(*inputs)[0].numpy()) for inputs in (with_lora, without)]
    return min(cosine(*pair) for pair in outputs), cosine(outputs[0][0], outputs[1][0])


def test_half_precision(hot_graphs, denoiser_inputs):
    graph = hot_graphs["denoiser"]
    same, without = agreement(lower(graph, "fp16"), graph, denoiser_inputs)
    assert same > 0.9999
    assert without < 0.999


def test_quantised_layers_take_loras(hot_graphs, denoiser_inputs):
    graph = hot_graphs["denoiser"]
    same, without = agreement(quantise(graph, denoiser_inputs, denoiser_inputs).graph, graph, denoiser_inputs)
    assert same > 0.999
    assert without < 0.998


def test_tensorrt_rtx_builds_it_for_a_range_of_ranks(bundle, hot_sizes, hot_graphs, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="pip install 'bolid-sdk[tensorrt-rtx]'")
    shapes = resolve_shapes(Range.parse("1:1:2", "--batch"), None, hot_sizes)
    file = bundle.file("denoiser.onnx")
    key = EngineKey(
        graph_sha256=(file_sha256(file),),
        shapes=graph_profile(hot_graphs["denoiser"].spec, shapes, hot_sizes),
        precision="fp32",
        runtime=runtime_name("tensorrt-rtx"),
        compute_capabilities=("8.9",),
    )
    rows = sum(layer.inputs for layer in hot_sizes.layers_of("denoiser"))
    assert key.shapes["lora_down"] == ((rows, 1), (rows, LIMIT), (rows, LIMIT))
    build_engine(file, tmp_path / "denoiser.engine", key)
    assert (tmp_path / "denoiser.engine").stat().st_size > 50_000


@pytest.mark.slow
def test_a_whole_export(model_folder, tmp_path):
    """Traced, verified and packaged with all graphs, then checked again by the doctor."""
    folder = tmp_path / "hot"
    options = ["--model", model_folder, "--hot-lora", LIMIT, "--precision", "fp16", "-o", folder, "--json"]
    made = CliRunner().invoke(export_main, [str(option) for option in options])
    assert made.exit_code == 0, made.stderr
    manifest = json.loads(made.stdout)
    assert "loras" in manifest["capabilities"]
    assert manifest["sizes"]["lora_rank"] == LIMIT
    checked = CliRunner().invoke(doctor, [str(folder), "--backend", "onnxruntime"])
    assert checked.exit_code == 0, checked.stderr
    assert "takes LoRAs up to rank 16 in 54 layers" in checked.stdout
