"""optimum exports the same model in an environment of its own: what its ONNX pipeline computes, our graphs compute.

Without identity, pose and image prompt, which optimum does not have. Its environment takes 1.3 GB and some minutes:

    python benchmarks/peers/environments.py optimum
"""

import json
import shutil
import subprocess

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from bolid_export.graphs import bind_graphs
from bolid_export.sources import Choices, model_sizes, open_source
from bolid_export.tracing.stream import to_onnx
from bolid_export.verification.metrics import cosine, relative_error
from bolid_export.verify import load_engines

LEAST, MOST = 0.9999, 1e-4

# Exports, and runs each network through optimum's own classes.
SCRIPT = """
import sys
import numpy as np, torch
from optimum.onnxruntime import ORTStableDiffusionPipeline

model, inputs, outputs = sys.argv[1:]
pipe = ORTStableDiffusionPipeline.from_pretrained(model, export=True)
given = {name: torch.from_numpy(array) for name, array in np.load(inputs).items()}
text = pipe.text_encoder(given["input_ids"]).last_hidden_state
latents = pipe.vae.encode(given["pixels"]).latent_dist.mode() * pipe.vae.config.scaling_factor
pixels = pipe.vae.decode(given["latents"] / pipe.vae.config.scaling_factor).sample
predicted = pipe.unet(given["latents"], given["timestep"], given["encoder_hidden_states"]).sample
np.savez(outputs, text_encoder=text, vae_encoder=latents, vae_decoder=pixels, denoiser=predicted)
"""


@pytest.fixture(scope="module")
def optimums_python(root):
    folder = root / "runs" / "peers" / "optimum"
    if not (folder / ".installed").exists():
        pytest.skip("optimum's environment is missing: python benchmarks/peers/environments.py optimum")
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def published(sd15_folder, tmp_path_factory):
    """As the transformers that optimum runs with writes and reads folders: two files of a tokenizer, one level more."""
    folder = shutil.copytree(sd15_folder, tmp_path_factory.mktemp("optimum") / "dreams")
    tokenizer = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(tokenizer["vocab"]))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    assert tokenizer["merges"] == []
    file = folder / "text_encoder" / "model.safetensors"
    state = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(file).items()}
    save_file(state, file, {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def checkpoint(published, ip_adapters, image_encoder_folder):
    return open_source(published, [ip_adapters["base"]], Choices(image_encoder=image_encoder_folder)).checkpoint


@pytest.fixture(scope="module")
def given(checkpoint):
    """What both read, at another size than the native one."""
    random, sizes = np.random.default_rng(0), model_sizes(checkpoint)
    normal = lambda *shape: random.standard_normal(shape).astype(np.float32)  # noqa: E731
    return {
        "input_ids": random.integers(0, 512, (2, sizes.text_length)),
        "pixels": normal(2, 3, 64, 96).clip(-1, 1),
        "latents": normal(2, sizes.latent_channels, 8, 12),
        "timestep": np.array(601),
        "encoder_hidden_states": normal(2, sizes.text_length, sizes.context_width),
    }


@pytest.fixture(scope="module")
def theirs(optimums_python, published, given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exchange")
    np.savez(folder / "inputs.npz", **given)
    command = [optimums_python, "-c", SCRIPT, published, folder / "inputs.npz", folder / "outputs.npz"]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return dict(np.load(folder / "outputs.npz"))


@pytest.fixture(scope="module")
def ours(checkpoint, given, tmp_path_factory):
    sizes, folder = model_sizes(checkpoint), tmp_path_factory.mktemp("engines")
    graphs = bind_graphs(checkpoint, sizes)

    def run(name, output, **inputs):
        file = to_onnx(graphs[name], folder, size_step=sizes.size_step, vae_factor=sizes.vae_factor)
        return load_engines({name: file}, {name: graphs[name].spec})[name].run(inputs)[output]

    return {
        "text_encoder": run("text_encoder", "encoder_hidden_states", input_ids=given["input_ids"]),
        "vae_encoder": run("vae_encoder", "latents", pixels=given["pixels"]),
        "vae_decoder": run("vae_decoder", "pixels", latents=given["latents"]),
        "denoiser": run("denoiser", "x0", **step(given, sizes)),
    }


def step(given, sizes):
    """A step of nobody that gives what the UNet predicts: x0 = k1 * sample + k2 * e with k = (1, 0, 1, ...)."""
    batch = len(given["latents"])
    return {
        "sample": given["latents"],
        "previous_x0": np.zeros_like(given["latents"]),
        "noise": np.zeros_like(given["latents"]),
        "timestep": np.full(1, 601, np.float32),
        "coefficients": np.array([1, 0, 1, 0, 0, 0, 0], np.float32),
        "guidance": np.ones(1, np.float32),
        "encoder_hidden_states": given["encoder_hidden_states"],
        "identity_tokens": np.ones((batch, sizes.identity_tokens, sizes.context_width), np.float32),
        "identity_scale": np.zeros(sizes.cross_attention_layers, np.float32),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text_encoder", "vae_encoder", "vae_decoder", "denoiser"])
def test_optimum_computes_the_same(name, theirs, ours, record_property):
    assert theirs[name].shape == ours[name].shape
    found = {"cosine": cosine(theirs[name], ours[name]), "error": relative_error(ours[name], theirs[name])}
    record_property(name, found)
    assert found["cosine"] > LEAST
    assert found["error"] < MOST
