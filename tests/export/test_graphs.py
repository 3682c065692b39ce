"""The denoiser's graph against PyTorch: every size and number of branches, scales as inputs."""

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnxscript import rewriter

from bolid_export.graphs import branch_index, guide
from bolid_export.to_onnx import OPSET, QUADRATIC, RULES, _linear_time
from bolid_export.verification.torch_engine import TorchEngine
from bolid_sdk.contracts import COEFFICIENTS, graph_specs


def denoiser_inputs(sizes, *, batch=1, branches=2, height=8, width=8, seed=0):
    """Random inputs of the denoiser; latent sizes."""
    random = np.random.default_rng(seed)
    axes = {"batch": batch, "guided_batch": batch * branches, "latent_height": height, "latent_width": width}
    inputs = {}
    for tensor in graph_specs(sizes)["denoiser"].inputs:
        shape = [axis if isinstance(axis, int) else divided(axis, axes) for axis in tensor.shape]
        inputs[tensor.name] = random.standard_normal(shape).astype(np.float32)
    return inputs | {"timestep": np.array([501.0], np.float32)}


def divided(axis, axes):
    name, _, divisor = axis.partition("/")
    return axes[name] // int(divisor or 1)


def worst_difference(graphs, engine, inputs):
    expected = TorchEngine(graphs["denoiser"]).run(inputs)
    return max(float(np.abs(array - expected[name]).max()) for name, array in engine.run(inputs).items())


@pytest.mark.parametrize(
    ("batch", "branches", "height", "width"), [(1, 1, 2, 2), (1, 2, 4, 4), (2, 2, 2, 5), (3, 1, 3, 1), (3, 2, 1, 4)]
)
def test_denoiser_equals_pytorch_at_every_size(graphs, sizes, export, batch, branches, height, width):
    _, engine = export("denoiser")
    unit = sizes.size_step // sizes.vae_factor
    inputs = denoiser_inputs(sizes, batch=batch, branches=branches, height=unit * height, width=unit * width)
    assert worst_difference(graphs, engine, inputs) < 1e-4


@pytest.mark.parametrize("batch", [1, 3])
def test_pose_estimator_equals_pytorch_in_every_batch(graphs, sizes, export, batch):
    _, engine = export("pose_estimator")
    shape = (batch, 3, sizes.pose_height, sizes.pose_width)
    inputs = {"pixels": np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)}
    expected = TorchEngine(graphs["pose_estimator"]).run(inputs)["heatmaps"]
    np.testing.assert_allclose(engine.run(inputs)["heatmaps"], expected, atol=1e-4)


@pytest.mark.parametrize("name", ["identity_scale", "image_scale"])
def test_scales_are_inputs_layer_by_layer(graphs, sizes, export, name):
    _, engine = export("denoiser")
    inputs = denoiser_inputs(sizes)
    answers = []
    for layer in range(sizes.cross_attention_layers):
        inputs[name] = np.eye(sizes.cross_attention_layers, dtype=np.float32)[layer]
        assert worst_difference(graphs, engine, inputs) < 1e-4
        answers.append(engine.run(inputs)["x0"])
    assert all(np.abs(a - answers[0]).max() > 1e-5 for a in answers[1:])


def test_the_sampler_update_is_linear_and_complete(graphs, sizes, export):
    """Each coefficient alone, against the equations of docs/architecture.md."""
    _, engine = export("denoiser")
    inputs = denoiser_inputs(sizes)
    unit = np.eye(COEFFICIENTS, dtype=np.float32)
    run = lambda row: engine.run(inputs | {"coefficients": row})  # noqa: E731
    for index, name in ((3, "sample"), (5, "previous_x0"), (6, "noise")):
        np.testing.assert_allclose(run(unit[index])["next_sample"], inputs[name], atol=1e-6)
    np.testing.assert_allclose(run(unit[1])["x0"], inputs["sample"], atol=1e-6)
    np.testing.assert_allclose(run(unit[0] + unit[2])["x0"], run(unit[0] + unit[4])["next_sample"], atol=1e-6)


def test_one_branch_ignores_guidance(sizes, export):
    _, engine = export("denoiser")
    inputs = denoiser_inputs(sizes, branches=1)
    weak, strong = (engine.run(inputs | {"guidance": np.array([g], np.float32)})["x0"] for g in (1.0, 9.0))
    np.testing.assert_array_equal(weak, strong)


@given(batch=st.integers(1, 5), branches=st.integers(1, 2), guidance=st.floats(-2, 20, width=32))
def test_branches_and_guidance_are_classifier_free_guidance(batch, branches, guidance):
    output = torch.randn(batch * branches, 3)
    assert branch_index(batch * branches, batch).tolist() == list(range(batch)) * branches
    first, last = output[:batch], output[-batch:]
    torch.testing.assert_close(guide(output, torch.tensor([guidance]), batch), first + guidance * (last - first))


def test_the_graph_says_what_the_contract_says(export, graphs):
    model, _ = export("denoiser")
    assert [opset.version for opset in model.opset_import] == [OPSET]
    spec = graphs["denoiser"].spec
    for value, tensor in zip([*model.graph.input, *model.graph.output], [*spec.inputs, *spec.outputs], strict=True):
        axes = value.type.tensor_type.shape.dim
        assert (value.name, tuple(a.dim_param or a.dim_value for a in axes)) == (tensor.name, tensor.shape)
        assert value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_no_rule_of_the_optimiser_compares_all_nodes_with_all():
    """Those rules look for several output nodes at once. A new one, or a renamed one, would slow every export down."""
    rules = getattr(rewriter, RULES)
    with _linear_time():
        kept = getattr(rewriter, RULES)
        assert all(rule._target_pattern.has_single_output_node for rule in kept)
    assert getattr(rewriter, RULES) is rules
    assert [rule.name for rule in rules if rule not in kept] == [QUADRATIC]


def test_nodes_are_named_after_modules_and_carry_nothing_private(export):
    model, _ = export("denoiser")
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert any(name.startswith("network.down_blocks.0.resnets.0.conv1/Conv") for name in names)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert b".py" not in model.SerializeToString()
    assert {"Softmax", "InstanceNormalization"} <= {node.op_type for node in model.graph.node}
