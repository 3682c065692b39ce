"""An environment for each peer: python benchmarks/peers/environments.py [NAME ...], all by default.

Peers want versions that exclude each other, so none shares an environment with another or with us.
"""

import shutil
import subprocess
import sys
import venv
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "runs" / "peers"

# PyTorch below 2.14: a CPU build is found where there is one, see CONTRIBUTING.md.
TORCH = ("torch>=2.11,<2.14", "safetensors")
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "diffusers": (*TORCH, "diffusers==0.42.1", "transformers==5.23.0", "accelerate==1.15.0"),
    "openvino": (*TORCH, "diffusers==0.42.1", "transformers==5.23.0", "openvino==2026.4.1"),
    "optimum": (*TORCH, "optimum-onnx[onnxruntime]==0.1.0", "optimum~=2.1.0", "diffusers", "transformers<4.58"),
    "sdcpp": ("stable-diffusion-cpp-python==0.4.7",),
    "genai": (*TORCH, "openvino-genai==2026.4.1.0", "optimum-intel[openvino,diffusers]==2.2.0"),
}

# Required by optimum-intel, used for nothing here, and not importable beside a CPU build of PyTorch: transformers,
# which looks for it, would not start.
REMOVED: dict[str, tuple[str, ...]] = {"genai": ("torchvision",)}


def python(name: str) -> Path | None:
    """The interpreter of an environment that has been installed."""
    found = FOLDER / name / "bin" / "python"
    return found if (FOLDER / name / ".installed").exists() else None


def install(name: str) -> None:
    """Makes the environment anew, or leaves nothing."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        venv.create(folder, with_pip=True)
        subprocess.run([folder / "bin" / "pip", "install", "-q", *REQUIREMENTS[name]], check=True)
        if removed := REMOVED.get(name):
            subprocess.run([folder / "bin" / "pip", "uninstall", "-q", "-y", *removed], check=True)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    (folder / ".installed").touch()


def main(names: list[str]) -> None:
    for name in names or REQUIREMENTS:
        print(f"installing {name}: {', '.join(REQUIREMENTS[name])}", flush=True)
        try:
            install(name)
        except subprocess.CalledProcessError:
            print(f"{name} cannot be installed here; the comparison goes on without it", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
