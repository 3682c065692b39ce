"""What a training step reaches of the machine: samples and floating-point operations a second, beside the conv peak."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bolid_training.loop import Task
from bolid_training.precision import autocast, fastest_precision

WARM_UP = 2


def profile_task(task: Task, batch_size: int, steps: int = 6) -> dict[str, float]:
    """Times whole steps in the training precision, the batch's making apart, and counts a step's operations."""
    parameters = [parameter for parameter in task.module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=True)
    batches = [seconds(lambda s=s: task.batch(np.random.default_rng(s), batch_size)) for s in range(WARM_UP + steps)]
    times = [seconds(lambda b=batch: _step(task, b, optimizer))[0] for _, batch in batches]
    with FlopCounterMode(display=False) as counter:
        _step(task, batches[0][1], optimizer)
    batch_time = float(np.median([taken for taken, _ in batches[WARM_UP:]]))
    step_time = float(np.median(times[WARM_UP:]))
    flops, peak = counter.get_total_flops() / step_time, conv_peak()
    return {
        "samples_per_second": batch_size / (batch_time + step_time),
        "batch_ms": 1000 * batch_time,
        "step_ms": 1000 * step_time,
        "gflop_per_sample": counter.get_total_flops() / batch_size / 1e9,
        "gflops": flops / 1e9,
        "conv_peak_gflops": peak / 1e9,
        "share_of_conv_peak": flops / peak,
    }


def conv_peak(size: int = 16, channels: int = 128, batch: int = 64, rounds: int = 8) -> float:
    """FLOP/s of forward and backward of one channels-last 3 x 3 convolution, the kind a UNet is made of."""
    dtype = torch.bfloat16 if fastest_precision() == "bf16" else torch.float32
    convolution = nn.Conv2d(channels, channels, 3, padding=1).to(dtype, memory_format=torch.channels_last)
    pixels = torch.randn(batch, channels, size, size, dtype=dtype).to(memory_format=torch.channels_last)
    pixels.requires_grad_()
    run = lambda: F.conv2d(pixels, convolution.weight, padding=1).sum().backward()  # noqa: E731
    times = [seconds(run)[0] for _ in range(WARM_UP + rounds)]
    operations = 3 * 2 * batch * size * size * channels * channels * 9
    return operations / float(np.median(times[WARM_UP:]))


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """How long `run` takes, and what it returns."""
    start = time.perf_counter()
    value = run()
    return time.perf_counter() - start, value


def _step(task: Task, batch: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> None:
    with autocast():
        losses = task.losses(task.module, batch)
    next(iter(losses.values())).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
