"""The arrows of docs/architecture.md: who may import whom, and what the runtime never loads."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    package: ROOT / folder
    for package, folder in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "package-dir"
    ].items()
}
MODULES = {
    ".".join([package, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): path
    for package, folder in PACKAGES.items()
    for path in sorted(folder.rglob("*.py"))
}

# Third-party packages of the runtime, and the optional ones that only the named module touches.
RUNTIME = {"click", "numpy", "onnxruntime", "PIL", "tqdm"}
OPTIONAL = {
    "bolid_sdk.backends.ov": {"openvino"},
    "bolid_sdk.backends.ov_compiler": {"openvino"},
    "bolid_sdk.backends.ov_geglu": {"openvino"},
    "bolid_sdk.backends.ov_invariants": {"openvino"},
    "bolid_sdk.backends.ov_transposition": {"openvino"},
    "bolid_sdk.backends.ov_upsampling": {"openvino"},
    "bolid_sdk.backends.ov_weights": {"openvino"},
    "bolid_sdk.backends.trt": {"tensorrt", "tensorrt_rtx", "cuda"},
    "bolid_sdk.serving": {"ray"},
}
FOUNDATION = {"bolid_sdk.contracts", "bolid_sdk.errors", "bolid_sdk.files"}


def imports(path: Path, module: str) -> Iterator[str]:
    """Absolute names of everything `path` imports, wherever in the file: `from a import b` gives a.b."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, [base, node.module]))
            yield from (f"{origin}.{name.name}" for name in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def module_of(name: str) -> str | None:
    """The module of ours that an imported name belongs to; None for everybody else's."""
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name or None


def layer(module: str) -> int:
    """contracts <- what uses them <- generator <- the package and what is served from it <- the command lines."""
    if module in FOUNDATION:
        return 0
    top = {"bolid_sdk.generator": 2, "bolid_sdk": 3, "bolid_sdk.serving": 3, "bolid_sdk.cli": 4}
    return top.get(module, 1)


SDK = [module for module in MODULES if within(module, "bolid_sdk")]


def arrows(package: str) -> list[tuple[str, str]]:
    return [
        (module, name) for module, path in MODULES.items() if within(module, package) for name in imports(path, module)
    ]


def test_the_packages_are_found():
    assert {module.partition(".")[0] for module in MODULES} == set(PACKAGES)
    assert {"bolid_sdk.contracts", "bolid_sdk.errors"} <= set(SDK)


def test_imports_sees_every_form(tmp_path):
    source = tmp_path / "module.py"
    source.write_text("import a.b\ndef f():\n    from c import d\n    from . import e\n    from ..g.h import i\n")
    assert list(imports(source, "x.y.module")) == ["a.b", "c.d", "x.y.e", "x.g.h.i"]


def test_nothing_imports_the_export():
    outside = [pair for package in PACKAGES if package != "bolid_export" for pair in arrows(package)]
    assert [pair for pair in outside if within(pair[1], "bolid_export")] == []


def test_the_export_takes_only_the_model_from_training():
    """The bare package says where its weights are."""
    taken = {name for _, name in arrows("bolid_export") if within(name, "bolid_training")}
    assert {name for name in taken if not within(name, "bolid_training.model")} <= {"bolid_training"}


def test_the_runtime_imports_its_own_dependencies_and_nothing_else():
    known = RUNTIME | {"bolid_sdk", "bolid_engines"} | sys.stdlib_module_names
    strangers = [
        (module, name)
        for module, name in arrows("bolid_sdk")
        if name.partition(".")[0] not in known | OPTIONAL.get(module, set())
    ]
    assert strangers == []


def test_the_runtime_declares_what_it_imports():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {line.partition(">")[0].replace("pillow", "PIL") for line in project["dependencies"]}
    imported = {name.partition(".")[0] for _, name in arrows("bolid_sdk")} & RUNTIME
    assert declared == imported


@pytest.mark.parametrize("module", SDK)
def test_the_runtime_is_layered(module):
    used = {module_of(name) for name in imports(MODULES[module], module)} - {None, module}
    above = {name for name in used if within(name, "bolid_sdk") and layer(name) > layer(module)}
    assert not above, f"{module} may not import {sorted(above)}"


def test_the_runtime_has_no_import_cycles():
    graph = {module: {module_of(name) for name in imports(MODULES[module], module)} - {None, module} for module in SDK}
    assert set(TopologicalSorter(graph).static_order()) >= set(SDK)


def test_importing_the_runtime_loads_no_training_library():
    """A child process, because this one has loaded them for other tests."""
    script = f"import importlib, sys\nfor name in {SDK}: importlib.import_module(name)\nprint(*sys.modules)"
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    loaded = {name.partition(".")[0] for name in child.stdout.split()}
    assert set(SDK) <= set(child.stdout.split())
    forbidden = {"torch", "diffusers", "transformers", "tokenizers", "onnx", "scipy", "bolid_training", "bolid_export"}
    assert loaded & forbidden == set()
