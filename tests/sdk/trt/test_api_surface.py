"""Every class, method, enum and CUDA function that our code names exists in the real Python bindings.

TensorRT-RTX's are installed for development. Those of TensorRT 10 and 11 and of CUDA are looked for in folders, because
two versions cannot share an environment: `make bindings`, or BOLID_BINDINGS=FOLDER with one subfolder a version:

    pip install --no-deps --target FOLDER/10.16 'tensorrt-cu13-bindings==10.16.*'
    pip install --no-deps --target FOLDER/cuda cuda-bindings cuda-pathfinder

TensorRT's own libraries are not needed: stubs with the same entry points let the bindings be imported.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
BINDINGS = Path(os.environ.get("BOLID_BINDINGS") or ROOT / ".venv-bindings")
MISSING = "make bindings, or see this file's first lines"

# What a name in our code holds.
RUNTIME = {
    "context": "IExecutionContext",
    "cuda_engine": "ICudaEngine",
    "_cuda_engine": "ICudaEngine",
    "_runtime": "Runtime",
    "config": "IRuntimeConfig",
}
WORKER = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "error": "ParserError",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
}
SOURCES = {"bolid_sdk/backends/trt.py": RUNTIME, "export/engines/tensorrt_worker.py": WORKER}
MODULE = ("trt", "library")
ENUMS = {"levels": "HardwareCompatibilityLevel"}

# Of one library alone; the code asks for them with hasattr, or after having asked.
RTX_ONLY = {
    "CudaGraphStrategy",
    "EngineValidity",
    "EngineInvalidityDiagnostics",
    "ComputeCapability",
    "IRuntimeConfig.cuda_graph_strategy",
    "Runtime.get_engine_validity",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
}
NOT_API = re.compile(r"__version__|.*\.(strategy|splitlines|items|value|name)$")


def receiver(node):
    """The last name of what an attribute is taken from: `self.library` and `plan.context` are library and context."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def used(source, classes):
    """Dotted names: "IExecutionContext.set_input_shape", "BuilderFlag.TF32", "Runtime"."""
    found = set()
    for node in ast.walk(ast.parse((ROOT / source).read_text())):
        if not isinstance(node, ast.Attribute):
            continue
        base = receiver(node.value)
        if base in MODULE:
            found.add(node.attr)
        elif base in ENUMS:
            found.add(f"{ENUMS[base]}.{node.attr}")
        elif base in classes:
            found.add(f"{classes[base]}.{node.attr}")
        elif isinstance(node.value, ast.Attribute) and receiver(node.value.value) in MODULE:
            found.add(f"{base}.{node.attr}")
    return {name for name in found if not NOT_API.fullmatch(name)}


ALL = set().union(*(used(source, classes) for source, classes in SOURCES.items()))
COMMON = {name for name in ALL if name not in RTX_ONLY and name.partition(".")[0] not in RTX_ONLY}

CHECK = """
import importlib, json, sys
module, names = importlib.import_module(sys.argv[1]), json.loads(sys.argv[2])
def has(name):
    value = module
    for part in name.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True
print(json.dumps([getattr(module, "__version__", ""), [name for name in names if not has(name)]]))
"""


def missing(module, names, **environment):
    """(version, the names that the module lacks), seen by a process of its own."""
    command = [sys.executable, "-c", CHECK, module, json.dumps(sorted(names))]
    child = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    assert child.returncode == 0, child.stderr
    return json.loads(child.stdout.splitlines()[-1])


def folders(pattern):
    found = sorted(path.parent for path in BINDINGS.glob(f"*/{pattern}"))
    skip = pytest.mark.skip(reason=f"no {pattern} below {BINDINGS}: {MISSING}")
    return [pytest.param(path, id=path.name) for path in found] or [pytest.param(None, id="absent", marks=skip)]


def make_stubs(library, folder):
    """Empty libraries with the entry points that the bindings link to."""
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    symbols = subprocess.run(["nm", "-D", "--undefined-only", library], capture_output=True, text=True, check=True)
    entries = re.findall(
        r"U ((?:create|get|init)\w*(?:_INTERNAL|PluginRegistry|Plugins|ParserVersion))$", symbols.stdout, re.M
    )
    code = folder / "stub.c"
    code.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in sorted(set(entries))))
    for name in re.findall(r"\[(libnv\w+\.so\.\d+)\]", needed):
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", folder / name, code]
        subprocess.run(command, check=True)


def test_the_names_are_found():
    """A test of the test: what it collects is what the files say."""
    assert {
        "IExecutionContext.set_input_shape",
        "IExecutionContext.set_device_memory",
        "IExecutionContext.update_device_memory_size_for_shapes",
        "IExecutionContext.execute_async_v3",
        "ICudaEngine.create_runtime_config",
        "ICudaEngine.create_execution_context",
        "ExecutionContextAllocationStrategy.USER_MANAGED",
        "Runtime.deserialize_cuda_engine",
        "ILogger.Severity",
        "INetworkDefinition.mark_weights_refittable",
        "IBuilderConfig.set_timing_cache",
        "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY",
        "BuilderFlag.VERSION_COMPATIBLE",
        "OnnxParser.parse_from_file",
        "ParserError.desc",
    } <= COMMON
    assert len(ALL) > 45


def test_tensorrt_rtx_has_everything():
    pytest.importorskip("tensorrt_rtx", reason="pip install 'bolid-sdk[tensorrt-rtx]'")
    assert missing("tensorrt_rtx", ALL)[1] == []


@pytest.mark.parametrize("folder", folders("tensorrt_bindings"))
def test_tensorrt_has_everything(folder, tmp_path):
    if not all(shutil.which(tool) for tool in ("gcc", "readelf", "nm")):
        pytest.skip("gcc and binutils make the stubs")
    make_stubs(folder / "tensorrt_bindings" / "tensorrt.so", tmp_path)
    version, lacking = missing("tensorrt_bindings", COMMON, PYTHONPATH=str(folder), LD_LIBRARY_PATH=str(tmp_path))
    assert version.startswith(folder.name)
    # older ones do without, and the code asks first
    assert set(lacking) <= {"HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"}


def cuda_names():
    found = defaultdict(set)
    source = (ROOT / "bolid_sdk/backends/cuda_device.py").read_text()
    for chain in re.findall(r"(?:runtime|self\._cuda)\.(cuda\w+(?:\.cuda\w+)?)", source):
        found["cuda.bindings.runtime"].add(chain)
    return found["cuda.bindings.runtime"]


@pytest.mark.parametrize("folder", folders("cuda"))
def test_cuda_has_everything(folder):
    names = cuda_names()
    assert {"cudaMalloc", "cudaMemcpyKind.cudaMemcpyDeviceToDevice", "cudaGraphLaunch"} <= names
    assert missing("cuda.bindings.runtime", names, PYTHONPATH=str(folder))[1] == []


@pytest.mark.parametrize("folder", folders("cuda"))
def test_the_real_driver_is_asked_first(folder):
    """Where there is no driver, in one line; a GPU makes this test pass by opening it."""
    script = (
        "from bolid_sdk.backends.cuda_device import open_device\n"
        "try: print(open_device(0))\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert re.match(r"cuda:0 \(|BackendError no CUDA device works: cudaError\w+ \(", child.stdout), child.stdout


def test_the_imaginary_machine_has_what_the_real_one_has(machine):
    """The tests beside this one would otherwise prove calls that nobody answers."""
    assert {name for name in cuda_names() if "." not in name and not hasattr(machine.cuda, name)} == set()
