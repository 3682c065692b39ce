"""Where on the average body a garment lies: coordinates along trunk, arms and legs (metres or joints, [V])."""

from functools import cache

import numpy as np

from bolid_training.avatars.anatomy import anatomy

WAIST, HIP, CROTCH, KNEE, ANKLE = 0.13, 0.049, -0.06, -0.369, -0.745  # heights in the template
NECK_RADIUS = 0.085


@cache
def arm_vertices() -> np.ndarray:
    """Vertices that belong to an arm, from the upper arm to the fingers, bool [V]."""
    return anatomy().of_bones("upperarm", "lowerarm", "wrist", "finger", "metacarpal")


@cache
def head_vertices() -> np.ndarray:
    """Vertices of the head, bool [V]."""
    return anatomy().of_bones("head", "eye")


@cache
def foot_vertices() -> np.ndarray:
    """Vertices of feet and toes, bool [V]."""
    return anatomy().of_bones("foot", "toe")


def along_arm(points: np.ndarray) -> np.ndarray:
    """0 at the shoulder, 1 at the elbow, 2 at the wrist, for points [N, 3] of the template; 0 or less on the trunk."""
    shared = anatomy()
    shoulder, elbow, wrist = (shared.heads[shared.bones[f"{name}.L"]] for name in ("upperarm01", "lowerarm01", "wrist"))
    mirrored = points * np.where(points[:, :1] < 0, [-1, 1, 1], [1, 1, 1])
    upper, lower = _along(mirrored, shoulder, elbow), _along(mirrored, elbow, wrist)
    position = np.where(upper < 1, upper, np.maximum(1, 1 + lower))
    # The trunk's side lies below the arm's axis, far from it.
    axis = shoulder + np.clip(upper, 0, 1)[:, None] * (elbow - shoulder)
    hand = elbow + np.clip(lower, 0, 1.6)[:, None] * (wrist - elbow)
    away = np.minimum(np.linalg.norm(mirrored - axis, axis=1), np.linalg.norm(mirrored - hand, axis=1)) > 0.11
    return np.where(away, -0.3, position)


def along_leg(points: np.ndarray) -> np.ndarray:
    """0 at the hip, 1 at the knee, 2 at the ankle, by height; for points [N, 3] of the template."""
    return np.interp(-points[:, 2], [-HIP, -KNEE, -ANKLE, -ANKLE + 0.1], [0, 1, 2, 2.3])


def below_neck(points: np.ndarray, drop: float = 0.0) -> np.ndarray:
    """Positive outside a round neckline, metres; `drop` lowers and widens it."""
    plane = 0.598 - drop + 0.55 * (points[:, 1] - 0.02)
    radius = np.hypot(points[:, 0], (points[:, 1] + 0.03))
    return np.maximum(plane - points[:, 2], radius - NECK_RADIUS - drop)


def _along(points: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    axis = end - start
    return (points - start) @ axis / (axis @ axis)
