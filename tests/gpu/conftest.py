"""Tests that need an NVIDIA GPU: `pytest tests/gpu`, for every library of TensorRT and TensorRT-RTX that is installed.

    pip install -e '.[export,dev,tensorrt-rtx]'         # or tensorrt
    pytest tests/gpu -rs -s

Engines of the avatar model are built first, in fp16, which takes PyTorch and a minute or two. On a machine without
PyTorch name a bundle that was exported elsewhere: BOLID_GPU_BUNDLE=FOLDER, made by

    bolid-export --backend tensorrt-rtx --compute-capability 8.9 --precision fp16 \\
                 --batch 1:1:4 --size 96:128:160 -o FOLDER

Nothing here has run yet: it was written without a GPU. What a test expects is said in it; a failure is worth a report.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bolid_sdk.backends import BACKENDS
from bolid_sdk.backends.cuda_device import Device, open_device
from bolid_sdk.bundle import Bundle
from bolid_sdk.errors import BackendError
from bolid_sdk.generator import Generator

ENTRIES = {entry.name: entry for entry in BACKENDS if entry.ahead_of_time}


@pytest.fixture(scope="session")
def device() -> Device:
    try:
        return open_device(0)
    except BackendError as error:
        pytest.skip(f"needs an NVIDIA GPU: {error}")


@pytest.fixture(scope="session", params=sorted(ENTRIES))
def backend(request, device) -> str:
    entry = ENTRIES[request.param]
    if not entry.installed:
        pytest.skip(f"{entry.name} is not installed: {entry.install}")
    return entry.name


@pytest.fixture(scope="session")
def bundle(backend, device, tmp_path_factory) -> Bundle:
    """The avatar in fp16, with engines for this GPU."""
    given = os.environ.get("BOLID_GPU_BUNDLE")
    folder = Path(given) if given else tmp_path_factory.mktemp("engines") / backend
    if not given:
        _export(backend, device, folder)
    opened = Bundle.open(folder)
    if backend not in opened.manifest.engine_backends:
        pytest.skip(f"{folder} has no engines of {backend}")
    return opened


def _export(backend: str, device: Device, folder: Path) -> None:
    pytest.importorskip("torch", reason="exporting takes PyTorch; or name a bundle with BOLID_GPU_BUNDLE")
    target = ["--backend", backend, "--compute-capability", device.capability]
    shapes = ["--precision", "fp16", "--batch", "1:1:4", "--size", "96:128:160"]
    command = [sys.executable, "-m", "bolid_export", *target, *shapes, "-o", str(folder)]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr


@pytest.fixture(scope="session")
def generator(bundle, backend) -> Generator:
    return Generator(bundle.path, backend=backend, device="cuda:0", max_batch=4)


@pytest.fixture(scope="session")
def cpu(bundle) -> Generator:
    """The same bundle's ONNX graphs: the float16 weights and islands, in ONNX Runtime's float32 arithmetic."""
    return Generator(bundle.path, backend="onnxruntime", device="cpu", max_batch=4)


@pytest.fixture(scope="session")
def reference(root) -> Path:
    return root / "examples" / "ref.png"


@pytest.fixture(scope="session")
def person(cpu, reference):
    """Identified once, so that two backends are compared on what follows."""
    return cpu.identify(reference)


@pytest.fixture(scope="session")
def psnr():
    """dB between two pictures of 8 bits."""

    def measure(one, other) -> float:
        error = np.square(np.asarray(one, float) - np.asarray(other, float)).mean()
        return float(10 * np.log10(255**2 / max(error, 1e-9)))

    return measure
