"""One picture with everything known about it, from nothing but three numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bolid_training.avatars.attributes import Attributes, as_dict
from bolid_training.avatars.body import Figure, build_figure
from bolid_training.avatars.captions import captions
from bolid_training.avatars.framing import frame_figure
from bolid_training.avatars.people import Person, sample_person
from bolid_training.avatars.poses import POSE_CLASSES, sample_pose
from bolid_training.avatars.render import Camera, Rendering, render
from bolid_training.avatars.scenes import (
    Scene,
    Seat,
    build_scene,
    build_seat,
    precipitation,
    sample_place,
    sample_seat,
    seat_width,
)
from bolid_training.avatars.styles import sample_style, stylise

OFTEN = {"standing": 0.15, "walking": 0.12, "sitting": 0.14, "lying": 0.13}  # lying is common, and the hardest to draw
POSE_WEIGHTS = {
    kind: OFTEN.get(kind, (1 - sum(OFTEN.values())) / (len(POSE_CLASSES) - len(OFTEN))) for kind in POSE_CLASSES
}
KEYPOINT_DEPTH = 0.16
"""Metres of its own body that may lie before a joint which still counts as visible."""

_PERSON, _PICTURE, _EMPTY = 1, 2, 3  # streams of random numbers that never meet


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A picture and its annotation.

    image: uint8 [H, W, 3] sRGB; parts: uint8 [H, W], values of `Part`; keypoints: float32 [12, 3], x and y in [0, 1]
    inside the frame, then 2 visible, 1 occluded, 0 out of the frame. Without a person identity is -1 and
    keypoints are 0.
    """

    identity: int
    view_index: int
    image: np.ndarray
    parts: np.ndarray
    keypoints: np.ndarray
    yaw: float
    attributes: Attributes
    captions: list[str]

    def metadata(self) -> dict:
        """Plain values for JSON."""
        return {
            "identity": self.identity,
            "view_index": self.view_index,
            "pose": self.attributes.pose,
            "view": self.attributes.view,
            "yaw": round(self.yaw, 1),
            "scene": self.attributes.place,
            "time": self.attributes.time,
            "style": self.attributes.style,
            "attributes": as_dict(self.attributes),
            "keypoints": np.round(self.keypoints, 4).tolist(),
            "captions": self.captions,
        }


def person_of(identity_index: int, seed: int) -> Person:
    """The person of an identity, the same in all of its pictures."""
    return sample_person(_generator(_PERSON, seed, identity_index))


def make_sample(identity_index: int, view_index: int, seed: int, size: int = 128) -> Sample:
    """Picture `view_index` of an identity. The person depends on (seed, identity) alone, the rest on the view too."""
    person = person_of(identity_index, seed)
    rng = _generator(_PICTURE, seed, identity_index, view_index)
    place, time = sample_place(rng)
    kind = str(rng.choice(POSE_CLASSES, p=list(POSE_WEIGHTS.values())))
    azimuth, turn = rng.uniform(-0.17, 0.17), np.radians(_turn(kind, rng))
    figure = build_figure(person, sample_pose(rng, kind), azimuth + turn)
    seat = sample_seat(place.indoor, turn, rng) if figure.seat is not None else None
    scene = build_scene(place, time, _clearance(figure, seat), rng)
    points = np.concatenate([mesh.vertices for mesh in figure.meshes])
    camera = frame_figure(points[::5], azimuth, indoor=place.indoor, low=kind == "lying", rng=rng)
    meshes = [*scene.meshes, *figure.meshes]
    if seat is not None:
        meshes += build_seat(seat, figure.seat)
    rendering = render(meshes, camera, scene.light, background=scene.background, size=size, supersample=2)
    view = None if kind == "lying" else view_name(np.degrees(turn))
    attributes = _attributes(scene, camera, rng, person=person, pose=kind, view=view, seat=seat)
    return Sample(
        identity=identity_index,
        view_index=view_index,
        image=_picture(rendering, scene, attributes.style, rng),
        parts=rendering.parts,
        keypoints=_keypoints(figure.keypoints, camera, rendering),
        yaw=float(np.degrees(turn)),
        attributes=attributes,
        captions=captions(attributes, rng),
    )


def make_empty(index: int, seed: int, size: int = 128) -> Sample:
    """A picture of nobody, to learn that there may be nobody."""
    rng = _generator(_EMPTY, seed, index)
    place, time = sample_place(rng)
    scene = build_scene(place, time, 0.4, rng)
    body = np.array([[x, y, z] for x in (-0.3, 0.3) for y in (-0.2, 0.2) for z in (0, 1.75)], np.float32)
    camera = frame_figure(body, rng.uniform(-0.17, 0.17), indoor=place.indoor, low=False, rng=rng)
    rendering = render(scene.meshes, camera, scene.light, background=scene.background, size=size, supersample=2)
    attributes = _attributes(scene, camera, rng, person=None, pose=None, view=None, seat=None)
    return Sample(
        identity=-1,
        view_index=index,
        image=_picture(rendering, scene, attributes.style, rng),
        parts=rendering.parts,
        keypoints=np.zeros((12, 3), np.float32),
        yaw=0.0,
        attributes=attributes,
        captions=captions(attributes, rng),
    )


def view_name(turn: float) -> str:
    """What captions call a body turned by `turn` degrees from facing the camera, [-180, 180]."""
    return "front" if abs(turn) <= 60 else "side" if abs(turn) <= 120 else "back"


def _generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(key))


def _turn(kind: str, rng: np.random.Generator) -> float:
    """Degrees from facing the camera: front 60 %, sides 20 %, back 20 %; who lies mostly lies across the picture."""
    side = rng.choice((-1, 1))
    if kind == "lying":
        return side * rng.uniform(55, 125) if rng.random() < 0.85 else rng.uniform(-180, 180)
    low, high = ((0, 60), (60, 120), (120, 180))[rng.choice(3, p=(0.6, 0.2, 0.2))]
    return side * rng.uniform(low, high)


def _clearance(figure: Figure, seat: Seat | None) -> float:
    """Radius of the disc around the origin that scenes leave free, metres."""
    body = float(np.abs(figure.bounds[:, :2]).max())
    return max(body, seat_width(seat) / 2 + 0.15) if seat is not None else body


def _attributes(scene: Scene, camera: Camera, rng: np.random.Generator, **of_person) -> Attributes:
    return Attributes(
        **of_person,
        place=scene.place,
        time=scene.time,
        indoor=scene.indoor,
        objects=tuple(thing for thing in scene.objects if _in_frame(thing.position, camera)),
        style=sample_style(rng),
    )


def _in_frame(position: tuple[float, float, float], camera: Camera) -> bool:
    seen, depth = camera.project(np.array([position]))
    return bool(depth[0] > 0 and (seen > 0.03).all() and (seen < 0.97).all())


def _picture(rendering: Rendering, scene: Scene, style: str, rng: np.random.Generator) -> np.ndarray:
    image = rendering.image if scene.indoor else precipitation(rendering.image, scene.time, rng)
    return stylise(style, image, rendering.parts, rendering.depth, rng)


def _keypoints(points: np.ndarray, camera: Camera, rendering: Rendering) -> np.ndarray:
    seen, _ = camera.project(points)
    inside = ((seen >= 0) & (seen <= 1)).all(axis=1)
    visibility = np.where(inside, np.where(rendering.occluded(points, KEYPOINT_DEPTH), 1, 2), 0)
    return np.concatenate([seen, visibility[:, None]], axis=1).astype(np.float32)
