"""Linear layers that are cut in two, as two layers: the same numbers, nothing cut."""

import numpy as np
import openvino
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from bolid_sdk.backends.ov_geglu import split_geglu
from bolid_sdk.backends.ov_transposition import transpose_weights

IN, OUT = 6, 8


def geglu(*, weights="float16", bias=True, axis=-1, shared=False, computed=False):
    """x [batch, tokens, IN] -> [batch, tokens, OUT / 2]: an OpenVINO model with weights of this type on disk.

    shared: whether the uncut layer is an output too; computed: whether the weight comes from the input.
    """
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((IN, OUT)).astype(np.float32)
    scale = np.abs(weight).max(0) / 127
    stored = {
        "float32": {"W": weight},
        "float16": {"Wh": weight.astype(np.float16)},
        "int8": {"Wq": np.rint(weight / scale).astype(np.int8), "Ws": scale},
    }[weights]
    constants = {**stored, "B": generator.standard_normal(OUT).astype(np.float32), "one": np.float32(1)}
    read = {
        "float32": [],
        "float16": [helper.make_node("Cast", ["Wh"], ["W"], to=TensorProto.FLOAT)],
        "int8": [helper.make_node("DequantizeLinear", ["Wq", "Ws"], ["W"], axis=1)],
    }[weights]
    nodes = [
        *read,
        *([helper.make_node("Mul", ["W", "factor"], ["W2"])] if computed else []),
        helper.make_node("MatMul", ["x", "W2" if computed else "W"], ["product"]),
        *([helper.make_node("Add", ["product", "B"], ["biased"])] if bias else []),
        helper.make_node("Split", ["biased" if bias else "product"], ["hidden", "gate"], axis=axis),
        helper.make_node("Sigmoid", ["gate"], ["opened"]),
        helper.make_node("Mul", ["hidden", "opened"], ["y"]),
        *([helper.make_node("Sigmoid", ["biased"], ["also"])] if shared else []),
    ]
    graph = helper.make_graph(
        nodes,
        "geglu",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, None, IN]),
            *([helper.make_tensor_value_info("factor", TensorProto.FLOAT, [1])] if computed else []),
        ],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ["y", "also"][: 1 + shared]],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    return openvino.Core().read_model(model.SerializeToString())


def computes(model, batch, tokens):
    inputs = {"x": np.random.default_rng(1).standard_normal((batch, tokens, IN), np.float32)}
    if len(model.inputs) == 2:
        inputs["factor"] = np.array([2], np.float32)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled(inputs)[0].copy()


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 2),
    tokens=st.integers(1, 9),
    weights=st.sampled_from(["float32", "float16", "int8"]),
    bias=st.booleans(),
    transposed=st.booleans(),
)
def test_two_layers_compute_what_one_did(batch, tokens, weights, bias, transposed):
    changed = geglu(weights=weights, bias=bias)
    if transposed:
        transpose_weights(changed)
    assert split_geglu(changed) == 1
    expected = computes(geglu(weights=weights, bias=bias), batch, tokens)
    assert expected.shape == (batch, tokens, OUT // 2)
    np.testing.assert_allclose(computes(changed, batch, tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weights", ["float16", "int8"])
def test_weights_stay_as_small_as_they_were(weights):
    changed = geglu(weights=weights)
    split_geglu(changed)
    kinds = [node.get_type_name() for node in changed.get_ordered_ops()]
    constants = [node.data for node in changed.get_ordered_ops() if node.get_type_name() == "Constant"]
    assert "Split" not in kinds
    assert [value.shape for value in constants if value.dtype == np.dtype(weights) and value.ndim == 2] == (
        [(IN, OUT // 2)] * 2
    )


def test_what_was_split_is_split_once():
    changed = geglu()
    assert [split_geglu(changed), split_geglu(changed)] == [1, 0]


@pytest.mark.parametrize("other", [{"axis": 1}, {"shared": True}, {"computed": True}], ids=str)
def test_what_only_looks_like_one_is_left_alone(other):
    changed = geglu(**other)
    assert split_geglu(changed) == 0
    np.testing.assert_array_equal(computes(changed, 1, 4), computes(geglu(**other), 1, 4))
