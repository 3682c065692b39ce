"""Each graph of the embedded bundle, one picture at a time, at the model's own size."""

import numpy as np
import pytest

from bolid_sdk.backends import Backend, open_backend
from bolid_sdk.bundle import Bundle
from bolid_sdk.contracts import PARTS, TensorSpec
from bolid_sdk.graphs import load_graph
from bolid_sdk.manifest import Manifest

GRAPHS = (
    "text_encoder",
    "pose_estimator",
    "image_encoder",
    "identity_encoder",
    "image_projector",
    "pose_guider",
    "denoiser",
    "denoiser_shallow",
    "vae_decoder",
    "vae_encoder",
)

pytestmark = pytest.mark.benchmark(group="graphs", min_rounds=5, max_time=1.0, warmup=True, warmup_iterations=3)


@pytest.fixture(scope="module")
def opened(backend: str) -> Backend:
    return open_backend(backend)


@pytest.mark.parametrize("graph", GRAPHS)
def test_graph(benchmark, bundle: Bundle, opened: Backend, graph: str, seed: int):
    entry = bundle.manifest.graphs.get(graph)
    if entry is None:
        pytest.skip(f"the embedded bundle has no {graph}")
    benchmark.extra_info["name"] = f"`{graph}`"
    engine = load_graph(bundle, opened, graph)
    rng = np.random.default_rng(seed)
    inputs = {tensor.name: example(tensor, axes(bundle.manifest), rng) for tensor in entry.spec.inputs}
    benchmark(engine.run, inputs)


def axes(manifest: Manifest) -> dict[str, int]:
    """The dynamic axes for one picture of one person seen once."""
    sizes = manifest.sizes
    return {
        "batch": 1,
        "guided_batch": manifest.sampling.branches,
        "views": PARTS,
        "height": sizes.native_height,
        "width": sizes.native_width,
        "latent_height": sizes.native_height // sizes.vae_factor,
        "latent_width": sizes.native_width // sizes.vae_factor,
    }


def example(tensor: TensorSpec, sizes: dict[str, int], rng: np.random.Generator) -> np.ndarray:
    """Noise of the tensor's shape; `latent_height/2` is an axis half as long. Zero is a valid token and part."""
    shape = [axis if isinstance(axis, int) else length(axis, sizes) for axis in tensor.shape]
    if tensor.dtype == "int64":
        return np.zeros(shape, np.int64)
    return rng.standard_normal(shape, np.float32)


def length(axis: str, sizes: dict[str, int]) -> int:
    name, _, divisor = axis.partition("/")
    return sizes[name] // int(divisor or 1)
