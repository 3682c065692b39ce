"""optimum's ONNX pipeline on ONNX Runtime's CPU: python optimum_onnx.py MODEL. Exported once into MODEL/optimum.

It knows no person and no pose.
"""

import sys
from pathlib import Path

import torch
from optimum.onnxruntime import ORTStableDiffusionPipeline
from protocol import PROMPT, Request, serve


def load(model: Path) -> ORTStableDiffusionPipeline:
    folder = model / "optimum"
    if not folder.exists():
        ORTStableDiffusionPipeline.from_pretrained(str(model), export=True).save_pretrained(folder)
    return ORTStableDiffusionPipeline.from_pretrained(folder)


def main(model: str) -> None:
    pipe = load(Path(model))
    pipe.set_progress_bar_config(disable=True)

    def draw(request: Request) -> None:
        pipe(
            PROMPT,
            width=request.size,
            height=request.size,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            num_images_per_prompt=request.batch,
            generator=torch.Generator().manual_seed(request.seed),
        )

    serve(draw)


if __name__ == "__main__":
    main(*sys.argv[1:])
