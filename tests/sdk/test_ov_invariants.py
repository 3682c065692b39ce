"""What tokens alone decide is computed once for all steps, and the steps are the same."""

import numpy as np
import openvino
import pytest

from bolid_sdk.backends import open_backend, ov, ov_compiler
from bolid_sdk.backends.ov_compiler import TOKENS
from bolid_sdk.backends.ov_invariants import split_invariants
from bolid_sdk.bundle import open_bundle
from bolid_sdk.errors import InputError

BUNDLE = open_bundle()
DENOISER = BUNDLE.manifest.graphs["denoiser"]
PATH = BUNDLE.file(DENOISER.file)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BOLID_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


@pytest.fixture(scope="module")
def inputs():
    with np.load(BUNDLE.file(BUNDLE.manifest.golden)) as arrays:
        found = {key.split("/")[2]: arrays[key] for key in arrays.files if key.startswith("denoiser/inputs/")}
    return found | {"identity_scale": np.ones_like(found["identity_scale"])}


def engine(monkeypatch, *, tokens_once):
    monkeypatch.setattr(ov_compiler, "TOKENS_ONCE", 0 if tokens_once else 1 << 40)
    return open_backend("openvino", threads=1).load(PATH, DENOISER.spec)


def halves(inputs):
    tokens = {name: value for name, value in inputs.items() if name in TOKENS}
    return tokens, {name: value for name, value in inputs.items() if name not in TOKENS}


@pytest.mark.parametrize(("precision", "tolerance"), [("f32", 1e-5), (None, 0.02)])
def test_outputs_are_the_same(monkeypatch, inputs, precision, tolerance):
    if precision:
        monkeypatch.setenv("BOLID_PRECISION", precision)
    whole = engine(monkeypatch, tokens_once=False).run(inputs)
    parts = engine(monkeypatch, tokens_once=True).run(inputs)
    for name, value in whole.items():
        assert np.linalg.norm(parts[name] - value) <= tolerance * np.linalg.norm(value)


def test_changed_tokens_are_read_again(monkeypatch, inputs):
    tokens, others = halves(inputs)
    loop = engine(monkeypatch, tokens_once=True).bind(tokens)
    first = loop.run(others)["x0"].numpy()
    changed = {"identity_tokens": tokens["identity_tokens"] + 1}
    second = loop.run(others | changed)["x0"].numpy()
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(second, engine(monkeypatch, tokens_once=True).run(inputs | changed)["x0"])


def test_tokens_of_a_run_that_failed_are_not_forgotten(monkeypatch, inputs):
    tokens, others = halves(inputs)
    loop = engine(monkeypatch, tokens_once=True).bind(tokens)
    loop.run(others)
    changed = {"identity_tokens": tokens["identity_tokens"] + 1}
    with pytest.raises(InputError):
        loop.run(others | changed | {"nobody_knows_it": others["timestep"]})
    del loop._held["nobody_knows_it"]
    found = loop.run(others)["x0"].numpy()
    np.testing.assert_array_equal(found, engine(monkeypatch, tokens_once=True).run(inputs | changed)["x0"])


def test_four_steps_read_the_tokens_once(monkeypatch, inputs):
    runs = []
    set_inputs = ov._set_inputs
    monkeypatch.setattr(ov, "_set_inputs", lambda *given: (runs.append(given[1]), set_inputs(*given)))
    tokens, others = halves(inputs)
    loaded = engine(monkeypatch, tokens_once=True)
    loop = loaded.bind(tokens)
    for _ in range(4):
        loop.run(others)
    compiled = loaded.compiled(loop._held)
    assert [runs.count(compiled.step), runs.count(compiled.once)] == [4, 1]


def test_every_size_reads_them_with_the_same_graph(monkeypatch, inputs, cache):
    wide = {
        name: np.repeat(value, 2, axis=-1) if name.startswith(("sample", "previous", "noise", "pose")) else value
        for name, value in inputs.items()
    }
    loaded = engine(monkeypatch, tokens_once=True)
    loaded.run(inputs)
    loaded.run(wide)
    assert len(list(cache.rglob("*.blob"))) == 3  # steps of two sizes, and what comes before


def test_keys_and_values_of_all_tokens_move():
    model = openvino.Core().read_model(PATH)
    products = {node.get_friendly_name() for node in model.get_ops() if node.get_type_name() == "MatMul"}
    of_tokens = {name for name in products if ".attn2." in name and (".to_k" in name or ".to_v" in name)}
    once, step = split_invariants(model, TOKENS)
    left = {node.get_friendly_name() for node in step.get_ops() if node.get_type_name() == "MatMul"}
    assert len(of_tokens) == 42
    assert of_tokens.isdisjoint(left)
    assert {port.any_name for port in once.inputs} == TOKENS
    assert TOKENS.isdisjoint(port.any_name for port in step.inputs)


def test_a_graph_without_such_products_is_refused():
    entry = BUNDLE.manifest.graphs["vae_decoder"]
    with pytest.raises(ValueError, match="no matrix product"):
        split_invariants(openvino.Core().read_model(BUNDLE.file(entry.file)), TOKENS)
