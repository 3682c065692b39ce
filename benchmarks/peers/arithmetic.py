"""Arithmetic of a bundle's denoiser: python arithmetic.py BUNDLE [SIZE ...], GFLOP of one picture and one branch.

Counted in what `bolid_sdk.backends.ov_compiler` compiles of it: two for each multiply-add of its matrix products,
attention's among them, and of its convolutions. As exported, a step of SD1.5 with identity and image prompt has 181.7
at 256 px and 806.0 at 512. What is often quoted for SD1.5, 677 at 512 px, is without the products inside attention.
"""

import math
import sys
from pathlib import Path

import openvino as ov

from bolid_sdk.backends.ov_compiler import Part, prepare
from bolid_sdk.bundle import Bundle
from bolid_sdk.contracts import graph_specs


def denoiser_gflop(bundle: Bundle, size: int, part: Part) -> float:
    """Of a square picture of `size` pixels: at each step, or once for all of them."""
    sizes = bundle.manifest.sizes
    latent = size // sizes.vae_factor
    axes = {"batch": 1, "guided_batch": 1, "latent_height": latent, "latent_width": latent}
    shapes = tuple((tensor.name, tensor.extents(axes)) for tensor in graph_specs(sizes)["denoiser"].inputs)
    model = prepare(ov.Core().read_model(bundle.file("denoiser.onnx")), part, shapes)
    return 2 * sum(map(multiply_adds, model.get_ordered_ops())) / 1e9


def multiply_adds(operation: ov.Node) -> int:
    kind = operation.get_type_name()
    if kind == "MatMul":
        first = operation.input(0).get_shape()
        inner = first[-2 if operation.get_attributes()["transpose_a"] else -1]
        return math.prod(operation.output(0).get_shape()) * inner
    if kind == "Convolution":  # its weights are [output channels, input channels, *kernel]
        return math.prod(operation.output(0).get_shape()) * math.prod(list(operation.input(1).get_shape())[1:])
    return 0


def main(path: str, *sizes: str) -> None:
    bundle = Bundle.open(Path(path))
    for size in map(int, sizes or ("256", "512")):
        step, once = (denoiser_gflop(bundle, size, part) for part in ("step", "once"))
        print(f"{size} px: {step:.1f} GFLOP a step, {once:.1f} once")


if __name__ == "__main__":
    main(*sys.argv[1:])
