"""A person in a pose: the dressed figure, its keypoints and what it sits on."""

from dataclasses import dataclass

import numpy as np

from bolid_training.avatars.anatomy import Anatomy, anatomy, rest
from bolid_training.avatars.mesh import Mesh, yaw_matrix
from bolid_training.avatars.outfit import Piece, dress
from bolid_training.avatars.parts import Part
from bolid_training.avatars.people import Person
from bolid_training.avatars.poses import Pose
from bolid_training.avatars.skeleton import bone_transforms


@dataclass(frozen=True, kw_only=True)
class SeatSpec:
    """Where the figure sits: a chair, bench or box fits here."""

    position: np.ndarray  # [3] centre of the seat's surface, z its height
    width: float  # metres, across
    depth: float  # metres, front to back
    height: float  # metres above the ground
    yaw: float  # radians; 0 faces -y, as a figure's yaw


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A dressed, posed person about the origin on z = 0."""

    meshes: list[Mesh]
    keypoints: np.ndarray  # float32 [12, 3] metres: shoulders, elbows, wrists, hips, knees, ankles; left first
    seat: SeatSpec | None
    bounds: np.ndarray  # float32 [2, 3], lowest and highest corner


def build_figure(person: Person, pose: Pose, yaw: float) -> Figure:
    """The dressed person in the pose, turned about z by `yaw` radians (0 faces -y)."""
    shared, shape = anatomy(), rest(person.build)
    rotations, translations = bone_transforms(shared, shape, pose)
    turn = yaw_matrix(yaw)
    rotations, translations = turn @ rotations, translations @ turn.T
    transforms = np.concatenate([rotations.reshape(-1, 9), translations], 1).astype(np.float32)
    pieces = dress(person, shape)
    posed = [_skinned(piece.vertices, piece.weights, transforms) for piece in pieces]
    skin = posed[0]
    keypoints = shared.keypoints @ skin
    # Skirts and coats may hang below what carries the weight: they lie on the ground then.
    carrying = [
        skin,
        *(vertices for piece, vertices in zip(pieces, posed, strict=True) if piece.parts[0] == Part.SHOES),
    ]
    lowest = min(vertices[:, 2].min() for vertices in carrying)
    offset = np.array([*-skin.mean(0)[:2], pose.lift - lowest], np.float32)
    meshes = [piece.mesh(vertices + offset) for piece, vertices in zip(pieces, posed, strict=True)]
    everything = np.concatenate([mesh.vertices for mesh in meshes])
    return Figure(
        meshes=meshes,
        keypoints=(keypoints + offset).astype(np.float32),
        seat=_seat(shared, pieces, meshes, keypoints + offset, yaw) if pose.seated else None,
        bounds=np.stack([everything.min(0), everything.max(0)]),
    )


def _skinned(vertices: np.ndarray, weights, transforms: np.ndarray) -> np.ndarray:
    """Linear blend skinning: v' = sum_b w_b (R_b v + t_b), float32 [V, 3]."""
    blended = weights @ transforms
    return np.einsum("vij,vj->vi", blended[:, :9].reshape(-1, 3, 3), vertices) + blended[:, 9:]


def _seat(shared: Anatomy, pieces: list[Piece], meshes: list[Mesh], keypoints: np.ndarray, yaw: float) -> SeatSpec:
    """A seat under the buttocks and the back half of the thighs, as high as they are."""
    hips, knees = keypoints[6:8].mean(0), keypoints[8:10].mean(0)
    thigh = np.linalg.norm((knees - hips)[:2])
    forward = yaw_matrix(yaw) @ [0.0, -1.0, 0.0]
    position = hips + forward * (0.5 * thigh - 0.12)
    height = _underside(meshes, hips, forward, thigh)
    position[2] = height
    return SeatSpec(
        position=position.astype(np.float32),
        width=float(thigh * 1.1),
        depth=float(thigh * 0.95),
        height=height,
        yaw=yaw,
    )


def _underside(meshes: list[Mesh], hips: np.ndarray, forward: np.ndarray, thigh: float) -> float:
    """Height of the lowest point between the buttocks and the middle of the thighs."""
    vertices = np.concatenate([mesh.vertices for mesh in meshes])
    ahead = (vertices - hips) @ forward
    beside = np.abs((vertices - hips) @ np.cross(forward, [0.0, 0.0, 1.0]))
    under = (ahead > -0.2) & (ahead < thigh * 0.55) & (beside < thigh * 0.6) & (vertices[:, 2] > hips[2] - thigh * 0.5)
    return float(np.quantile(vertices[under, 2], 0.02))
