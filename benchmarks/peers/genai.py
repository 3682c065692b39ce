"""openvino-genai's Text2ImagePipeline: python genai.py MODEL. Converted once by optimum-intel into MODEL/genai.

It knows no person and no pose. The pipeline is reshaped to static sizes, as its guide recommends for speed.
"""

import subprocess
import sys
from pathlib import Path

import openvino_genai
from protocol import PROMPT, Request, serve


def convert(model: Path) -> Path:
    folder = model / "genai"
    if not folder.exists():
        command = ["optimum-cli", "export", "openvino", "--model", str(model), "--task", "text-to-image", str(folder)]
        subprocess.run([Path(sys.executable).with_name(command[0]), *command[1:]], check=True, stdout=sys.stderr)
    return folder


def main(model: str) -> None:
    folder, pipelines = convert(Path(model)), {}

    def draw(request: Request) -> None:
        shape = (request.batch, request.size, request.size, request.guidance)
        if shape not in pipelines:
            pipeline = openvino_genai.Text2ImagePipeline(folder)
            pipeline.reshape(*shape)
            pipeline.compile("CPU")
            pipelines[shape] = pipeline
        pipelines[shape].generate(
            PROMPT,
            width=request.size,
            height=request.size,
            num_inference_steps=request.steps,
            num_images_per_prompt=request.batch,
            guidance_scale=request.guidance,
        )

    serve(draw)


if __name__ == "__main__":
    main(*sys.argv[1:])
