"""Arithmetic of a bundle's denoiser: python arithmetic.py BUNDLE [SIZE ...], GFLOP of a step, one picture, one branch.

Counted in the graph that runs: two for each multiply-add of its matrix products, attention's among them, and of its
convolutions. What is often quoted for SD1.5, 677 at 512 px, is without the products inside attention.
"""

import math
import sys
from pathlib import Path

import openvino as ov

from bolid_sdk.bundle import Bundle
from bolid_sdk.contracts import graph_specs


def denoiser_gflop(bundle: Bundle, size: int) -> float:
    """Of a square picture of `size` pixels."""
    sizes = bundle.manifest.sizes
    latent = size // sizes.vae_factor
    axes = {"batch": 1, "guided_batch": 1, "latent_height": latent, "latent_width": latent}
    model = ov.Core().read_model(bundle.file("denoiser.onnx"))
    model.reshape({tensor.name: list(tensor.extents(axes)) for tensor in graph_specs(sizes)["denoiser"].inputs})
    return 2 * sum(map(multiply_adds, model.get_ordered_ops())) / 1e9


def multiply_adds(operation: ov.Node) -> int:
    kind = operation.get_type_name()
    if kind == "MatMul":
        first = operation.input(0).get_shape()
        return (
            math.prod(operation.output(0).get_shape()) * first[-2 if operation.get_attributes()["transpose_a"] else -1]
        )
    if kind == "Convolution":  # its weights are [output channels, input channels, *kernel]
        return math.prod(operation.output(0).get_shape()) * math.prod(list(operation.input(1).get_shape())[1:])
    return 0


def main(path: str, *sizes: str) -> None:
    bundle = Bundle.open(Path(path))
    for size in map(int, sizes or ("256", "512")):
        print(f"{size} px: {denoiser_gflop(bundle, size):.1f} GFLOP")


if __name__ == "__main__":
    main(*sys.argv[1:])
