"""InstantID's ControlNet inside the denoiser's graph or beside it? A step both ways, in turns, at SD1.5's true size.

    python benchmarks/identity_net.py -o benchmarks/results/identity_net.json

Random weights, OpenVINO, one guided picture. Beside it, thirteen feature maps go from one engine to the other at every
step. Needs 16 GB of memory.
"""

import json
import os
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import click
import numpy as np
import openvino as ov
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from bolid_training.evaluate.provenance import commit, cpu_name

WIDTH, TEXT_TOKENS, IDENTITY_TOKENS, BRANCHES = 768, 77, 16, 2


class Residuals(nn.Module):
    """The ControlNet alone: its text is the identity."""

    def __init__(self, net: ControlNetModel) -> None:
        super().__init__()
        self.net = net

    def forward(self, sample: Tensor, timestep: Tensor, tokens: Tensor, skeleton: Tensor) -> tuple[Tensor, ...]:
        down, middle = self.net(sample, timestep, tokens, skeleton, return_dict=False)
        return (*down, middle)


class Beside(nn.Module):
    """The UNet with residuals for inputs."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, *residuals: Tensor) -> Tensor:
        *down, middle = residuals
        added = {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}
        return self.unet(sample, timestep, text, **added, return_dict=False)[0]


class Inside(nn.Module):
    """Both in one graph."""

    def __init__(self, unet: UNet2DConditionModel, net: ControlNetModel) -> None:
        super().__init__()
        self.beside, self.residuals = Beside(unet), Residuals(net)

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor, tokens: Tensor, skeleton: Tensor) -> Tensor:
        return self.beside(sample, timestep, text, *self.residuals(sample, timestep, tokens, skeleton))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--size", default=256, show_default=True, help="Pixels a side.")
@click.option("--rounds", type=click.IntRange(2), default=7, show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path))
@torch.no_grad()
def main(size: int, rounds: int, out: Path | None) -> None:
    """Times a denoising step with the ControlNet inside the UNet's graph, and beside it."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=size // 8, cross_attention_dim=WIDTH).eval()
    net = ControlNetModel.from_unet(unet).eval()
    for parameter in net.parameters():  # its last layers are zero until it is trained
        parameter += 0.01 * torch.randn_like(parameter)
    given = example(size)
    names = ("sample", "timestep", "text", "tokens", "skeleton")
    ours = [given[name] for name in names if name != "text"]
    features = Residuals(net)(*ours)
    first = [given[name] for name in ("sample", "timestep", "text")]
    inside = compiled(Inside(unet, net), [given[name] for name in names])
    residuals, beside = compiled(Residuals(net), ours), compiled(Beside(unet), [*first, *features])

    def step_inside() -> Any:
        return inside([given[name].numpy() for name in names], share_inputs=True, share_outputs=True)[0]

    def step_beside() -> Any:
        found = residuals([x.numpy() for x in ours], share_inputs=True, share_outputs=True)
        return unet_with([found[index] for index in range(len(features))])

    def unet_with(maps: list[Any]) -> Any:
        return beside([*[x.numpy() for x in first], *maps], share_inputs=True, share_outputs=True)[0]

    expected = step_inside().copy()
    difference = float(np.abs(expected - step_beside()).max() / np.abs(expected).max())
    without = unet_with([np.zeros_like(feature.numpy()) for feature in features])
    effect = float(np.abs(expected - without).max() / np.abs(expected).max())
    result = {
        "setup": {
            "cpu": cpu_name(),
            "cores": len(os.sched_getaffinity(0)),
            "load": round(os.getloadavg()[0], 2),
            "openvino": ov.__version__,
            "commit": commit(),
            "size": size,
        },
        "rows": in_turns({"inside": step_inside, "beside": step_beside}, rounds),
        "relative_difference": difference,
        "relative_effect": effect,
        "bytes_between": sum(feature.nbytes for feature in features),
        "weights": {"unet": count(unet), "identity_net": count(net)},
    }
    text = json.dumps(result, indent=1)
    if out:
        out.write_text(text + "\n")
    click.echo(text)


def example(size: int) -> dict[str, Tensor]:
    """One guided picture's inputs; the skeleton has the pixels, the sample an eighth of them a side."""
    return {
        "sample": torch.randn(BRANCHES, 4, size // 8, size // 8),
        "timestep": torch.tensor([601.0]),
        "text": torch.randn(BRANCHES, TEXT_TOKENS, WIDTH),
        "tokens": torch.randn(BRANCHES, IDENTITY_TOKENS, WIDTH),
        "skeleton": torch.rand(BRANCHES, 3, size, size),
    }


def compiled(module: nn.Module, inputs: list[Tensor]) -> ov.InferRequest:
    """For these shapes, in the order of `inputs`."""
    model = ov.convert_model(module.eval(), example_input=tuple(inputs), input=[tuple(x.shape) for x in inputs])
    return ov.Core().compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY"}).create_infer_request().infer


def in_turns(steps: dict[str, Any], rounds: int) -> list[dict[str, Any]]:
    """Seconds of each, and the median of its neighbours' ratios to the first."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            taken[name].append(time.perf_counter() - start)
    first = next(iter(taken.values()))
    return [
        {
            "way": name,
            "seconds": round(median(seconds), 3),
            "quartiles": [round(value, 3) for value in quantiles(seconds, n=4)[::2]],
            "ratio": round(median(a / b for a, b in zip(seconds, first, strict=True)), 3),
        }
        for name, seconds in taken.items()
    ]


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


if __name__ == "__main__":
    main()
