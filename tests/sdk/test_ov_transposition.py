"""What transposing weights changes, and what it leaves alone."""

import numpy as np
import onnx
import openvino
import pytest
from onnx import TensorProto, helper, numpy_helper

from bolid_sdk.backends.ov_transposition import transpose_weights

WIDTH, OUT = 24, 40


@pytest.fixture
def model(tmp_path):
    """Of ONNX nodes, whose W is float16 [WIDTH, OUT] and V float16 [OUT, WIDTH]; Wf and Vf are the same in float32."""

    def build(body):
        generator = np.random.default_rng(0)
        weights = {"W": generator.standard_normal((WIDTH, OUT)), "V": generator.standard_normal((OUT, WIDTH))}
        graph = helper.make_graph(
            [helper.make_node("Cast", [name], [f"{name}f"], to=TensorProto.FLOAT) for name in weights] + body,
            "products",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, WIDTH])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value.astype(np.float16), name) for name, value in weights.items()],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "graph.onnx")
        return openvino.Core().read_model(tmp_path / "graph.onnx")

    return build


def product(model):
    x = np.random.default_rng(1).standard_normal((3, WIDTH), np.float32)
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled({"x": x})[0].copy()


MATMUL = helper.make_node("MatMul", ["x", "Wf"], ["y"])
TWICE = [helper.make_node("MatMul", ["x", "Wf"], ["h"]), helper.make_node("MatMul", ["h", "Vf"], ["y"])]
SHARED = [
    helper.make_node("MatMul", ["x", "Wf"], ["one"]),
    helper.make_node("Relu", ["x"], ["positive"]),
    helper.make_node("MatMul", ["positive", "Wf"], ["other"]),
    helper.make_node("Add", ["one", "other"], ["y"]),
]
ALREADY = helper.make_node("Gemm", ["x", "Vf"], ["y"], transB=1)
LEFT = [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("MatMul", ["Vf", "t"], ["y"])]


@pytest.mark.parametrize(("body", "expected"), [([MATMUL], 1), (TWICE, 2), (SHARED, 0), ([ALREADY], 0), (LEFT, 0)])
def test_products_stay_what_they_were(model, body, expected):
    changed = model(body)
    assert transpose_weights(changed) == expected
    np.testing.assert_allclose(product(changed), product(model(body)), rtol=1e-5, atol=1e-5)


def test_a_weight_lies_as_the_kernel_reads_it(model):
    changed = model([MATMUL])
    transpose_weights(changed)
    products = [node for node in changed.get_ops() if node.get_type_name() == "MatMul"]
    assert [list(node.input_value(1).get_shape()) for node in products] == [[OUT, WIDTH]]


def test_what_was_transposed_is_transposed_once(model):
    changed = model([MATMUL])
    assert [transpose_weights(changed), transpose_weights(changed)] == [1, 0]
