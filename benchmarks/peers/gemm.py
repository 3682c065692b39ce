"""The processor's peak in matrix products: {"bf16_gflops": ..., "f32_gflops": ...}, the best of some seconds."""

import json
import time

import torch

SIZE, SECONDS = 4096, 4.0


@torch.no_grad()
def peak(dtype: torch.dtype) -> float:
    """GFLOP/s of a square product of `SIZE`."""
    a, b = (torch.randn(SIZE, SIZE).to(dtype) for _ in range(2))
    best, start = float("inf"), time.perf_counter()
    while time.perf_counter() - start < SECONDS:
        begin = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begin)
    return 2 * SIZE**3 / best / 1e9


if __name__ == "__main__":
    print(json.dumps({"bf16_gflops": round(peak(torch.bfloat16)), "f32_gflops": round(peak(torch.float32))}))
