"""ONNX Runtime: what it refuses while it runs is an error of ours that names the graph."""

import numpy as np
import pytest

from bolid_sdk.backends import open_backend
from bolid_sdk.errors import BackendError


@pytest.fixture(scope="module")
def engine(tiny_bundle):
    entry = tiny_bundle.manifest.graphs["vae_decoder"]
    return open_backend("onnxruntime", "cpu", 1).load(tiny_bundle.file(entry.file), entry.spec)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"latents": np.zeros((1, 5, 4, 4), np.float32)}, "invalid dimensions .* Got: 5 Expected: 4"),
        ({"latents": np.zeros((1, 4, 4, 4), np.int64)}, "data type"),
        ({"latents": np.zeros((1, 4, 4, 4), np.complex64)}, "Numpy_type"),
        ({"pixels": np.zeros((1, 4, 4, 4), np.float32)}, "pixels"),
    ],
)
def test_wrong_inputs_are_refused_by_name_of_the_graph(engine, inputs, message):
    for run in (engine.run, engine.bind({}).run, lambda wrong: engine.bind(wrong).run({})):
        with pytest.raises(BackendError, match=f"onnxruntime cannot run vae_decoder: .*{message}"):
            run(inputs)


def test_a_loop_goes_on_after_a_failure(engine):
    loop, right = engine.bind({}), {"latents": np.ones((1, 4, 4, 4), np.float32)}
    with pytest.raises(BackendError):
        loop.run({"latents": np.ones((1, 5, 4, 4), np.float32)})
    np.testing.assert_array_equal(loop.run(right)["pixels"].numpy(), engine.run(right)["pixels"])
