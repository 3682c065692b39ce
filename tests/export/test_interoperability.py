"""Other people's tools on the embedded bundle: Polygraphy inspects and runs each graph, Netron shows readable names."""

import json
import re
import subprocess
import sys

import numpy as np
import onnx
import pytest

from bolid_sdk.bundle import open_bundle

BUNDLE = open_bundle()
GRAPHS = sorted(BUNDLE.manifest.graphs)

# A module's path, as in the checkpoint (or our own code about it), then the operator.
MODULE_PATH = re.compile(r"(network|graph)(\.\w+)*/\w+")

SCRIPT = """
import contextlib, io, json, sys
from polygraphy.tools import main
answers = []
for arguments in json.loads(sys.argv[1]):
    sys.argv, output = ["polygraphy", *arguments], io.StringIO()
    with contextlib.redirect_stdout(output):
        try:
            code = main()
        except SystemExit as exit:
            code = exit.code
    answers.append([code or 0, output.getvalue()])
print(json.dumps(answers))
"""


def polygraphy(*commands):
    """Exit code and output of each command, all in one process: starting it takes longer than most of them."""
    pytest.importorskip("polygraphy", reason="pip install polygraphy")
    script = [sys.executable, "-c", SCRIPT, json.dumps(commands)]
    child = subprocess.run(script, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    return dict(zip(GRAPHS, json.loads(child.stdout.splitlines()[-1]), strict=True))


def path(name):
    return str(BUNDLE.file(BUNDLE.manifest.graphs[name].file))


def golden_shapes(name):
    """Of a graph's stored inputs, as Polygraphy wants them: dynamic axes have to agree with one another."""
    with np.load(BUNDLE.file(BUNDLE.manifest.golden)) as arrays:
        prefix = f"{name}/inputs/"
        inputs = {key.removeprefix(prefix): arrays[key].shape for key in arrays.files if key.startswith(prefix)}
    return [f"{tensor}:[{','.join(map(str, shape))}]" for tensor, shape in inputs.items()]


def test_polygraphy_inspects_every_graph():
    for name, (code, text) in polygraphy(*(["inspect", "model", path(name)] for name in GRAPHS)).items():
        assert code == 0, text
        spec = BUNDLE.manifest.graphs[name].spec
        assert f"{len(spec.inputs)} Graph Input(s)" in text
        assert f"{len(spec.outputs)} Graph Output(s)" in text
        for tensor in (*spec.inputs, *spec.outputs):
            assert f"{tensor.name} [dtype={tensor.dtype}" in text


def test_polygraphy_runs_every_graph():
    commands = (
        ["run", path(name), "--onnxrt", "--validate", "--input-shapes", *golden_shapes(name)] for name in GRAPHS
    )
    for name, (code, text) in polygraphy(*commands).items():
        assert code == 0, f"{name}: {text}"
        assert "PASSED" in text


@pytest.mark.parametrize("name", GRAPHS)
def test_what_computes_is_named_after_its_module(name):
    nodes = onnx.load(path(name), load_external_data=False).graph.node
    names = [node.name for node in nodes]
    assert all(names)
    assert len(set(names)) == len(names)
    wanted = {"Conv", "MatMul", "Gemm", "Softmax", "LayerNormalization", "GroupNormalization"}
    assert [node.name for node in nodes if node.op_type in wanted and not MODULE_PATH.fullmatch(node.name)] == []
