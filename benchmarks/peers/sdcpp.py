"""stable-diffusion.cpp by its Python package: python sdcpp.py MODEL [q8_0 | f16]. It reads diffusers folders itself.

It knows no person and no pose here. `cfg_scale` of 1 is one branch.
"""

import os
import sys

from protocol import PROMPT, Request, serve
from stable_diffusion_cpp import StableDiffusion


def main(model: str, weights: str = "q8_0") -> None:
    threads = len(os.sched_getaffinity(0))
    pipeline = StableDiffusion(model_path=model, wtype=weights, n_threads=threads, verbose=False)

    def draw(request: Request) -> None:
        pipeline.generate_image(
            prompt=PROMPT,
            width=request.size,
            height=request.size,
            sample_steps=request.steps,
            cfg_scale=request.guidance,
            sample_method="euler",
            batch_count=request.batch,
            seed=request.seed,
        )

    serve(draw)


if __name__ == "__main__":
    main(*sys.argv[1:])
