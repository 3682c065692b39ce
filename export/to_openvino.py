"""A bundle compiled by OpenVINO for its first picture, before anybody waits for it.

OpenVINO reads the bundle's ONNX graphs and compiles them for the shapes that it meets; what it has compiled it keeps in
the user's cache (`bolid_sdk.backends.blobs`). Compiled graphs are for one processor, so they are no part of a bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from bolid_sdk.backends import Backend, open_backend
from bolid_sdk.backends.ov import OvBackend, OvEngine
from bolid_sdk.bundle import Bundle
from bolid_sdk.contracts import Axis, GraphSpec, Sizes
from bolid_sdk.graphs import load_graph
from bolid_sdk.manifest import Manifest
from bolid_sdk.sampling import ResolvedSampling

UNUSED = ("vae_encoder",)
"""Graphs that no picture needs."""


def openvino_backend() -> OvBackend:
    """The backend that a `Generator(bundle, backend="openvino")` opens. Raises BackendError, InputError."""
    backend: Backend = open_backend("openvino", "cpu")
    assert isinstance(backend, OvBackend)
    return backend


def compile_ahead(bundle: Bundle, progress: Callable[[str], None] = lambda stage: None) -> list[str]:
    """Compiles what a first picture with the bundle's defaults runs, into the cache. Returns the graphs' names.

    Empty where nothing is cached. Raises BackendError for what OpenVINO cannot compile.
    """
    backend = openvino_backend()
    names = first_graphs(bundle.manifest) if backend.caches else []
    for name in names:
        progress(f"compiling {name}")
        engine = load_graph(bundle, backend, name)
        assert isinstance(engine, OvEngine)
        for axes in first_axes(name, bundle.manifest.sizes, bundle.manifest.sampling):
            engine.compiled(placeholders(engine.spec, axes))
    return names


def first_graphs(manifest: Manifest) -> list[str]:
    """Those of the bundle that its default sampling runs."""
    shallow = not all(step.full for step in manifest.sampling.plan())
    unused = UNUSED if shallow else (*UNUSED, "denoiser_shallow")
    return [name for name in manifest.graphs if name not in unused]


def first_axes(graph: str, sizes: Sizes, sampling: ResolvedSampling) -> Iterator[dict[str, int]]:
    """What the dynamic axes are for a first picture of one reference, at the native size, without LoRAs.

    The image encoder sees all parts of the person, and by itself the picture that stands for nobody; the denoiser may
    run with guidance and without.
    """
    batches = {"image_encoder": {1, sizes.parts}}.get(graph, {1})
    branches = {step.branches for step in sampling.plan()} if graph.startswith("denoiser") else {1}
    for batch in sorted(batches):
        for guided in sorted(branches):
            yield {
                "batch": batch,
                "guided_batch": guided,
                "views": sizes.parts,
                "identity_tokens": sizes.identity_tokens,
                "lora_rank": 1,
                "height": sizes.native_height,
                "width": sizes.native_width,
                "latent_height": sizes.native_height // sizes.vae_factor,
                "latent_width": sizes.native_width // sizes.vae_factor,
            }


def placeholders(spec: GraphSpec, axes: dict[str, int]) -> dict[str, np.ndarray]:
    """Arrays of the inputs' shapes that take no memory."""
    return {
        tensor.name: np.broadcast_to(np.float32(0), [_size(axis, axes) for axis in tensor.shape])
        for tensor in spec.inputs
    }


def _size(axis: Axis, axes: dict[str, int]) -> int:
    """Of "latent_height/4" given {"latent_height": 16}: 4."""
    if isinstance(axis, int):
        return axis
    name, _, divisor = axis.partition("/")
    return axes[name] // int(divisor or 1)
