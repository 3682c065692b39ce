"""The processor's peak in matrix products: {"bf16_gflops": ..., "f32_gflops": ...}, the best of some seconds."""

import json
import time

import torch

SIZES, SECONDS = (1024, 2048, 4096), 1.0


@torch.no_grad()
def peak(dtype: torch.dtype) -> float:
    """GFLOP/s of the best of the square products."""
    return max(reached(size, dtype) for size in SIZES)


def reached(size: int, dtype: torch.dtype) -> float:
    """GFLOP/s of the fastest square product of `size` within `SECONDS`."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        begin = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best / 1e9


if __name__ == "__main__":
    print(json.dumps({"bf16_gflops": round(peak(torch.bfloat16)), "f32_gflops": round(peak(torch.float32))}))
