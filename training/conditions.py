"""What a person's picture gives the adapter: crops of the parts, skeletons, pictures of the place alone.

The crops and skeletons are the runtime's own functions, so training and inference cannot drift apart.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from bolid_sdk import crops
from bolid_sdk.images import normalise
from bolid_sdk.pose import draw_skeleton
from bolid_training.avatars.parts import Part
from bolid_training.precision import autocast, fastest_layout

# What a pose estimator would say of keypoints that are out of the picture, occluded, visible.
CONFIDENCE = np.array([0.0, 0.6, 1.0], np.float32)
BODY = ((Part.FACE, Part.HAIR, Part.HAT), (Part.UPPER,), (Part.LOWER,), (Part.SHOES,), (Part.ARMS,), (Part.LEGS,))
KEYPOINT_NOISE = 0.006  # of the picture's side: about the pose estimator's error


def estimated_keypoints(keypoints: NDArray[np.float32], seed: int) -> NDArray[np.float32]:
    """Exact keypoints [12, 3] with visibility -> what an estimator finds: some noise, and confidences."""
    rng = np.random.default_rng(seed)
    points = keypoints.copy()
    points[:, :2] += rng.normal(0, KEYPOINT_NOISE, (len(points), 2))
    points[:, 2] = CONFIDENCE[keypoints[:, 2].astype(int)]
    return points


def part_crops(image: NDArray[np.uint8], keypoints: NDArray[np.float32], size: int) -> NDArray[np.uint8]:
    """uint8 [5, size, size, 3] of a picture [H, W, 3] and its keypoints [12, 3] with confidence."""
    return crops.part_crops(Image.fromarray(image), keypoints, size)


def skeleton(keypoints: NDArray[np.float32], side: int) -> NDArray[np.uint8]:
    """uint8 [side, side, 3]."""
    return draw_skeleton(keypoints, side, side)


def place_only(image: NDArray[np.uint8], parts: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture with its person dissolved into the surroundings: an image prompt that shows only scene and style."""
    background = (parts == Part.BACKGROUND) | (parts == Part.PROP)
    weight = gaussian_filter(background.astype(np.float32), 8) + 1e-4
    colour = gaussian_filter(image * background[..., None].astype(np.float32), (8, 8, 0)) / weight[..., None]
    return np.where(background[..., None], image, colour.clip(0, 255).astype(np.uint8))


@torch.no_grad()
def encode_patches(
    encoder: CLIPVisionModelWithProjection, extractor: CLIPImageProcessor, crops: NDArray[np.uint8]
) -> Tensor:
    """Patch tokens float32 [..., P, D] (`hidden_states[-2]`) of uint8 crops [..., S, S, 3]."""
    flat = torch.from_numpy(normalise(crops.reshape(-1, *crops.shape[-3:]), extractor.image_mean, extractor.image_std))
    with autocast():
        tokens = penultimate_states(encoder, flat).float()
    return tokens.unflatten(0, crops.shape[:-3])


def penultimate_states(encoder: CLIPVisionModelWithProjection, pixels: Tensor) -> Tensor:
    """`hidden_states[-2]` [B, P, D], without the last layer's sixth of the time."""
    vision = encoder.vision_model
    states = vision.pre_layrnorm(vision.embeddings(pixels))
    for layer in vision.encoder.layers[:-1]:
        states = layer(states, attention_mask=None)
    return states


def shrink(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """[H, W, 3] -> [size, size, 3]."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0))


def null_patches(encoder: CLIPVisionModelWithProjection, size: int) -> Tensor:
    """Patch tokens [P, D] of an all-zero picture: IP-Adapter-Plus' unconditional."""
    with torch.no_grad():
        return penultimate_states(encoder, torch.zeros(1, 3, size, size))[0]


def skeleton_batch(skeletons: NDArray[np.uint8]) -> Tensor:
    """uint8 [B, H, W, 3] -> float32 [B, 3, H, W] in [0, 1]."""
    maps = torch.from_numpy(np.ascontiguousarray(skeletons)).permute(0, 3, 1, 2).float() / 255
    return maps.contiguous(memory_format=fastest_layout())


def draw_dropped(rng: np.random.Generator, size: int, together: float, *alone: float) -> list[NDArray[np.bool_]]:
    """Which of `size` samples lose each condition, [B] each: all of them `together`, or one `alone`, with these shares.

    Guidance compares with the picture of nothing at all; that has to be common enough to be learned.
    """
    drawn = np.searchsorted(np.cumsum([together, *alone]), rng.random(size), side="right")
    return [(drawn == 0) | (drawn == 1 + index) for index in range(len(alone))]


def masked_features(features: list[Tensor], keep: Tensor) -> list[Tensor]:
    """Pose features with those of the samples that `keep` [B] leaves out set to zero."""
    return [feature * keep[:, None, None, None] for feature in features]


def guided_features(features: list[Tensor]) -> list[Tensor]:
    """Pose features [B, ...] -> [2B, ...] for guidance: the unconditional half, which comes first, has no pose."""
    return [torch.cat([torch.zeros_like(feature), feature]) for feature in features]


def body_weight(parts: NDArray[np.uint8], side: int) -> Tensor:
    """The person's coverage [B, 1, side, side] of each latent pixel, in [0, 1]."""
    person = (parts != Part.BACKGROUND) & (parts != Part.PROP)
    return F.adaptive_avg_pool2d(torch.from_numpy(person.astype(np.float32))[:, None], side)


def body_masks(parts: np.ndarray) -> Tensor:
    """Labels [B, H, W] -> a mask [B, 6, H, W] for each of `BODY`."""
    return torch.from_numpy(np.stack([np.isin(parts, group) for group in BODY], 1).astype(np.float32))
