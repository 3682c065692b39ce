"""Real inputs for every graph: the checkpoint, run in PyTorch, makes its own reference pictures and trajectories."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bolid_export.graphs import Graph
from bolid_export.scene import Scene, picture
from bolid_export.torch_engine import Record, TorchEngine
from bolid_sdk.contracts import PARTS, Sizes
from bolid_sdk.identity import part_boxes
from bolid_sdk.images import crop_resize, from_signed, normalise, to_signed
from bolid_sdk.pose import draw_skeleton
from bolid_sdk.schedule import SamplerTable
from bolid_training.model.checkpoint import Checkpoint

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


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Scenes, and what PyTorch did with them: every graph's inputs and outputs, by graph name.

    `references`: the pictures of the scenes by the plain diffusers loop, [1, 3, H, W] each.
    """

    scenes: tuple[Scene, ...]
    records: Mapping[str, list[Record]]
    references: tuple[NDArray[np.float32], ...] = ()


def calibrate(
    checkpoint: Checkpoint,
    graphs: Mapping[str, Graph],
    sizes: Sizes,
    table: SamplerTable,
    guidance: float,
    *,
    reduced: bool = False,
) -> Calibration:
    """Makes a picture for each prompt without an identity, then runs scenes whose references are those pictures.

    `reduced`: one scene, whose reference is a drawing (`bolid_export.effort`).
    """
    engines = {name: TorchEngine(graph) for name, graph in graphs.items()}
    if reduced:
        return _calibrate_one(checkpoint, engines, sizes, table, guidance)
    blanks = [_blank_scene(checkpoint, sizes, *pair) for pair in zip(PROMPTS, POSES, strict=True)]
    pictures = [picture(engines, scene, sizes, table, guidance) for scene in blanks]
    images = from_signed(np.concatenate(pictures))
    scenes = tuple(
        _with_references(checkpoint, scene, image, pose, other)
        for scene, (image, other), pose in zip(blanks, pairwise([*images, images[0]]), POSES, strict=True)
    )
    for scene, pixels in zip(scenes, pictures, strict=True):
        picture(engines, scene, sizes, table, guidance)
        engines["vae_encoder"].run({"pixels": pixels})
        engines["pose_estimator"].run({"pixels": _resized(pixels, sizes)})
    return Calibration(scenes=scenes, records={name: engine.records for name, engine in engines.items()})


def _calibrate_one(
    checkpoint: Checkpoint, engines: Mapping[str, TorchEngine], sizes: Sizes, table: SamplerTable, guidance: float
) -> Calibration:
    blank = _blank_scene(checkpoint, sizes, PROMPTS[0], POSES[0])
    drawing = Image.fromarray((255 * blank.skeleton).astype(np.uint8).transpose(1, 2, 0))
    scene = _with_references(checkpoint, blank, drawing, POSES[0], drawing.rotate(180))
    scene = replace(scene, crops=scene.crops[:1], parts=scene.parts[:1])
    pixels = picture(engines, scene, sizes, table, guidance)
    engines["vae_encoder"].run({"pixels": pixels})
    if "pose_estimator" in engines:
        engines["pose_estimator"].run({"pixels": _resized(pixels, sizes)})
    return Calibration(scenes=(scene,), records={name: engine.records for name, engine in engines.items()})


def spread(records: list[Record], count: int) -> Iterator[Record]:
    """At most `count` of the records, evenly over time: the first and last steps of a trajectory differ most."""
    indices = np.unique(np.linspace(0, len(records) - 1, count).round().astype(int))
    return (records[index] for index in indices)


def _blank_scene(checkpoint: Checkpoint, sizes: Sizes, prompt: str, pose: NDArray[np.float32]) -> Scene:
    ids = checkpoint.tokenizer(["", prompt], padding="max_length", max_length=sizes.text_length, truncation=True)
    skeleton = draw_skeleton(pose, sizes.native_width, sizes.native_height)
    side = sizes.image_size
    return Scene(
        input_ids=np.array(ids["input_ids"], np.int64),
        crops=np.zeros((PARTS, 3, side, side), np.float32),
        parts=np.arange(PARTS),
        image_prompt=np.zeros((3, side, side), np.float32),
        skeleton=skeleton.transpose(2, 0, 1).astype(np.float32) / 255,
        identity_scale=0.0,
        image_scale=0.0,
        seed=len(prompt),
    )


def _with_references(
    checkpoint: Checkpoint, scene: Scene, image: Image.Image, pose: NDArray[np.float32], image_prompt: Image.Image
) -> Scene:
    """The scene with the person of `image` and the look of `image_prompt`; scales differ, so mixing them up shows."""
    side, extractor = scene.crops.shape[-1], checkpoint.feature_extractor
    crops = crop_resize(image, part_boxes(pose, image.width / image.height), side)
    whole = np.asarray(image_prompt.resize((side, side), Image.Resampling.BICUBIC))
    pixels = normalise(np.stack([whole, *crops]), extractor.image_mean, extractor.image_std)
    return replace(scene, crops=pixels[1:], image_prompt=pixels[0], identity_scale=1.0, image_scale=0.5)


def _resized(pixels: NDArray[np.float32], sizes: Sizes) -> NDArray[np.float32]:
    (image,) = from_signed(pixels)
    return to_signed(np.asarray(image.resize((sizes.pose_width, sizes.pose_height)))[None])
