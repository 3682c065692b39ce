"""Real inputs for every graph: the checkpoint, run in PyTorch, makes its own reference pictures and trajectories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bolid_export.graphs import Graph
from bolid_export.sources import Model
from bolid_export.verification.scene import Scene, latents, picture
from bolid_export.verification.torch_engine import Record, TorchEngine
from bolid_sdk.caching import Caching
from bolid_sdk.contracts import Sizes
from bolid_sdk.crops import part_crops
from bolid_sdk.face_map import draw_face_map
from bolid_sdk.images import crop_resize, from_signed, normalise, to_signed
from bolid_sdk.parts import centre_box
from bolid_sdk.pose import draw_skeleton
from bolid_sdk.schedule import SamplerTable

PROMPTS = ("a person standing in a park, red shirt, blue trousers", "a person sitting on a red sofa")

# Keypoints (x, y) of somebody who stands and waves, and of somebody who sits, in the contract's order.
STANDING = (
    *((0.58, 0.30), (0.42, 0.30), (0.66, 0.22), (0.37, 0.42), (0.62, 0.12), (0.36, 0.53)),
    *((0.55, 0.54), (0.45, 0.54), (0.56, 0.72), (0.44, 0.72), (0.56, 0.90), (0.44, 0.90)),
)
SITTING = (
    *((0.57, 0.34), (0.43, 0.34), (0.62, 0.46), (0.38, 0.46), (0.58, 0.56), (0.42, 0.56)),
    *((0.56, 0.58), (0.44, 0.58), (0.62, 0.66), (0.38, 0.66), (0.60, 0.86), (0.40, 0.86)),
)
POSES = tuple(np.array([(x, y, 1.0) for x, y in pose], np.float32) for pose in (STANDING, SITTING))

# For InstantID: eyes, nose, mouth corners.
FACE = np.array(
    [(x, y, 1.0) for x, y in ((0.44, 0.22), (0.56, 0.21), (0.51, 0.29), (0.46, 0.35), (0.55, 0.35))], np.float32
)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Scenes, and what PyTorch did with them: every graph's inputs and outputs, by graph name.

    `references`: the pictures of the scenes by the plain diffusers loop, [1, 3, H, W] each.
    """

    scenes: tuple[Scene, ...]
    records: dict[str, list[Record]]
    references: tuple[NDArray[np.float32], ...] = ()


def calibrate(
    checkpoint: Model,
    graphs: Mapping[str, Graph],
    sizes: Sizes,
    table: SamplerTable,
    guidance: float,
    *,
    reduced: bool = False,
) -> Calibration:
    """Makes a picture for each prompt without an identity, then runs scenes whose references are those pictures.

    `reduced`: one scene, whose reference is a drawing (`bolid_export.verification.effort`); its picture is not decoded
    here, for the reference picture is.
    """
    engines = {name: TorchEngine(graph) for name, graph in graphs.items()}
    if reduced:
        return _calibrate_one(checkpoint, engines, sizes, table, guidance)
    blanks = [_blank_scene(checkpoint, sizes, *pair) for pair in zip(PROMPTS, POSES, strict=True)]
    pictures = [picture(engines, scene, sizes, table, guidance) for scene in blanks]
    images = from_signed(np.concatenate(pictures))
    scenes = tuple(
        _with_references(checkpoint, sizes, scene, image, pose, other)
        for scene, (image, other), pose in zip(blanks, pairwise([*images, images[0]]), POSES, strict=True)
    )
    for scene, pixels in zip(scenes, pictures, strict=True):
        picture(engines, scene, sizes, table, guidance)
        if "denoiser_shallow" in engines:
            latents(engines, scene, sizes, table, guidance, caching="fast")
        _see(engines, pixels, sizes)
    return _recorded(scenes, engines)


def _calibrate_one(
    checkpoint: Model, engines: Mapping[str, TorchEngine], sizes: Sizes, table: SamplerTable, guidance: float
) -> Calibration:
    blank = _blank_scene(checkpoint, sizes, PROMPTS[0], POSES[0])
    drawing = Image.fromarray((255 * blank.skeleton).astype(np.uint8).transpose(1, 2, 0))
    scene = _with_references(checkpoint, sizes, blank, drawing, POSES[0], drawing.rotate(180))
    scene = replace(scene, crops=scene.crops[:1], parts=scene.parts[:1])
    caching: Caching = "fast" if "denoiser_shallow" in engines else "off"
    latents(engines, scene, sizes, table, guidance, caching)
    _see(engines, to_signed(np.asarray(drawing)[None]), sizes)
    return _recorded((scene,), engines)


def _see(engines: Mapping[str, TorchEngine], pixels: NDArray[np.float32], sizes: Sizes) -> None:
    """Shows a picture to the graphs that only look at pictures."""
    engines["vae_encoder"].run({"pixels": pixels})
    if "pose_estimator" in engines:
        engines["pose_estimator"].run({"pixels": _resized(pixels, sizes)})


def _recorded(scenes: tuple[Scene, ...], engines: Mapping[str, TorchEngine]) -> Calibration:
    return Calibration(scenes=scenes, records={name: engine.records for name, engine in engines.items()})


def spread(records: list[Record], count: int) -> Iterator[Record]:
    """At most `count` of the records, evenly over time: the first and last steps of a trajectory differ most."""
    indices = np.unique(np.linspace(0, len(records) - 1, count).round().astype(int))
    return (records[index] for index in indices)


def _blank_scene(checkpoint: Model, sizes: Sizes, prompt: str, pose: NDArray[np.float32]) -> Scene:
    draw, points = (draw_face_map, FACE) if sizes.face_map else (draw_skeleton, pose)
    skeleton = draw(points, sizes.native_width, sizes.native_height)
    side = sizes.image_size
    return Scene(
        token_ids=token_ids(checkpoint, sizes, ["", prompt]),
        zero_unconditional=checkpoint.zero_unconditional,
        crops=np.zeros((sizes.parts, 3, side, side), np.float32),
        parts=np.arange(sizes.parts),
        image_prompt=np.zeros((3, side, side), np.float32),
        skeleton=skeleton.transpose(2, 0, 1).astype(np.float32) / 255,
        identity_scale=0.0,
        image_scale=0.0,
        seed=len(prompt),
    )


def token_ids(checkpoint: Model, sizes: Sizes, prompts: list[str]) -> dict[str, NDArray[np.int64]]:
    """int64 [prompts, 77], by the text encoder's input."""
    tokenizers = [checkpoint.tokenizer, checkpoint.tokenizer_2][: sizes.token_inputs]
    padded = {"padding": "max_length", "max_length": sizes.text_length, "truncation": True}
    return {
        name: np.array(tokenizer(prompts, **padded)["input_ids"], np.int64)
        for name, tokenizer in zip(("input_ids", "input_ids_2"), tokenizers, strict=False)
    }


def _with_references(
    checkpoint: Model,
    sizes: Sizes,
    scene: Scene,
    image: Image.Image,
    pose: NDArray[np.float32],
    image_prompt: Image.Image,
) -> Scene:
    """The scene with the person of `image` and the look of `image_prompt`; scales differ, so mixing them up shows.

    Without an image encoder a person is whoever the scene's seed stands for.
    """
    side, extractor = scene.crops.shape[-1], checkpoint.feature_extractor
    scales = {"identity_scale": 1.0, "image_scale": 0.5, "lora_scale": 1.0}
    if not side:
        return replace(scene, **scales)
    whole = centre_box(image.width / image.height)
    crops = part_crops(image, pose, side) if sizes.parts > 1 else crop_resize(image, whole, side)
    look = np.asarray(image_prompt.resize((side, side), Image.Resampling.BICUBIC))
    pixels = normalise(np.stack([look, *crops]), extractor.image_mean, extractor.image_std)
    return replace(scene, crops=pixels[1:], image_prompt=pixels[0], **scales)


def _resized(pixels: NDArray[np.float32], sizes: Sizes) -> NDArray[np.float32]:
    (image,) = from_signed(pixels)
    return to_signed(np.asarray(image.resize((sizes.pose_width, sizes.pose_height)))[None])
