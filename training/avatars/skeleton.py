"""From a pose to the rotation and translation of every bone."""

from dataclasses import replace

import numpy as np

from bolid_training.avatars.anatomy import Anatomy, Rest
from bolid_training.avatars.mesh import normalized
from bolid_training.avatars.poses import Arm, Leg, Pose

DOWN = np.array([0.0, 0.0, -1.0])
FORWARD = np.array([0.0, -1.0, 0.0])
SPINE = ("spine05", "spine04", "spine03", "spine02", "spine01")
NECK = ("neck01", "neck02", "neck03", "head")


def bone_transforms(anatomy: Anatomy, rest: Rest, pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Rotations [B, 3, 3] and translations [B, 3]: a vertex v of bone b goes to R_b v + t_b (linear blend skinning)."""
    if pose.even_feet:
        pose = _with_even_feet(anatomy, rest, pose)
    local, world = _local_rotations(pose), _limb_rotations(anatomy, rest, pose)
    count = len(anatomy.parents)
    rotations, heads = np.empty((count, 3, 3)), np.empty((count, 3))
    names = list(anatomy.bones)
    for bone, parent in enumerate(anatomy.parents):
        name = names[bone]
        above = rotations[parent] if parent >= 0 else np.eye(3)
        heads[bone] = rest.heads[bone]
        if parent >= 0:
            heads[bone] = heads[parent] + above @ (rest.heads[bone] - rest.heads[parent])
        frame = world.get(name)
        if frame is not None:
            anchor = rotations[anatomy.bones[frame[0]]] if frame[0] else np.eye(3)
            rotations[bone] = anchor @ frame[1]
        else:
            rotations[bone] = above @ local[name] if name in local else above
    return rotations, heads - np.einsum("bij,bj->bi", rotations, rest.heads)


def euler(forward: float, side: float, twist: float) -> np.ndarray:
    """Rotation [3, 3] of degrees forward, then to the left side, after a twist to the left about the vertical."""
    return about_x(forward) @ _about_y(side) @ _about_z(twist)


def about_x(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _about_y(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _about_z(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def limb_direction(forward: float, out: float, side: int) -> np.ndarray:
    """Unit direction of a limb that hangs down at (0, 0); side is +1 for the left."""
    f, o = np.radians(forward), np.radians(out)
    return np.array([side * np.sin(o), -np.cos(o) * np.sin(f), -np.cos(o) * np.cos(f)])


def _local_rotations(pose: Pose) -> dict[str, np.ndarray]:
    rotations = {"root": euler(*pose.root)}
    for chain, turn in ((SPINE, pose.spine), (NECK, pose.head)):
        share = euler(*(angle / len(chain) for angle in turn))
        rotations |= dict.fromkeys(chain, share)
    for letter, arm, side in (("L", pose.left_arm, 1), ("R", pose.right_arm, -1)):
        # The shoulder blade gives about a third of what the arm rises above 45 degrees.
        rise = max(arm.out, arm.forward * 0.6) - 45
        rotations[f"clavicle.{letter}"] = _about_y(-side * np.clip(rise * 0.3, 0, 28))
        for finger in range(2, 6):
            for joint in range(1, 4):
                rotations[f"finger{finger}-{joint}.{letter}"] = _about_y(side * 12)
    return rotations


def _limb_rotations(anatomy: Anatomy, rest: Rest, pose: Pose) -> dict[str, tuple[str, np.ndarray]]:
    """Rotations that are given in the frame of another bone than the parent: name -> (bone or "" for world, [3, 3])."""
    result: dict[str, tuple[str, np.ndarray]] = {}
    for letter, side, arm, leg in (("L", 1, pose.left_arm, pose.left_leg), ("R", -1, pose.right_arm, pose.right_leg)):
        head = {name: rest.heads[anatomy.bones[f"{name}.{letter}"]] for name in _JOINTS}
        for name, rotation in zip(("upperarm", "lowerarm"), _arm(arm, side, head), strict=True):
            result |= {f"{name}0{i}.{letter}": ("spine01", rotation) for i in (1, 2)}
        upper, lower, shin = _leg(leg, side, head)
        for name, rotation in (("upperleg", upper), ("lowerleg", lower)):
            result |= {f"{name}0{i}.{letter}": ("root", rotation) for i in (1, 2)}
        result[f"foot.{letter}"] = _foot(leg, pose, shin)
    return result


_JOINTS = ("upperarm01", "lowerarm01", "wrist", "upperleg01", "lowerleg01", "foot")


def _arm(arm: Arm, side: int, head: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    upper0 = head["lowerarm01"] - head["upperarm01"]
    lower0 = head["wrist"] - head["lowerarm01"]
    upper, pole = _upper_and_pole(arm, side)
    flex = np.radians(arm.flex)
    lower, lower_pole = np.cos(flex) * upper + np.sin(flex) * pole, np.cos(flex) * pole - np.sin(flex) * upper
    # The rest arm is a little bent: its own plane is the elbow's.
    hinge0 = np.cross(upper0, lower0)
    pole0 = np.cross(hinge0, upper0)
    return (
        _frame(upper, pole) @ _frame(upper0, pole0).T,
        _frame(lower, lower_pole) @ _frame(lower0, np.cross(hinge0, lower0)).T,
    )


def _upper_and_pole(arm: Arm, side: int) -> tuple[np.ndarray, np.ndarray]:
    upper = limb_direction(arm.forward, arm.out, side)
    pole = np.asarray(arm.pole, float) * (side, 1, 1)
    return upper, normalized(pole - upper * (pole @ upper))


def _leg(leg: Leg, side: int, head: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rotations of thigh and shin, and the frame of the shin: canonical (down, knee forward) to the pose."""
    upper0, lower0 = head["lowerleg01"] - head["upperleg01"], head["foot"] - head["lowerleg01"]
    upper, knee, lower, lower_knee = _leg_axes(leg, side)
    shin = _frame(lower, lower_knee)
    return (
        _frame(upper, knee) @ _frame(upper0, FORWARD).T,
        shin @ _frame(lower0, FORWARD).T,
        shin @ _frame(DOWN, FORWARD).T,
    )


def _leg_axes(leg: Leg, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Unit directions of thigh and shin, each followed by where the knee points."""
    upper = limb_direction(leg.forward, leg.out, side)
    knee = about_x(-leg.forward) @ _about_z(side * leg.turn) @ FORWARD
    knee = normalized(knee - upper * (knee @ upper))
    flex = np.radians(leg.flex)
    return upper, knee, np.cos(flex) * upper - np.sin(flex) * knee, np.cos(flex) * knee + np.sin(flex) * upper


def _foot(leg: Leg, pose: Pose, shin: np.ndarray) -> tuple[str, np.ndarray]:
    if not leg.level:
        return "root", shin @ about_x(leg.foot)
    forward = euler(*pose.root) @ shin @ FORWARD
    heading = np.degrees(np.arctan2(forward[0], -forward[1]))
    return "", _about_z(heading) @ about_x(leg.foot)


def _frame(along: np.ndarray, pole: np.ndarray) -> np.ndarray:
    """Columns: unit `along`, `pole` made orthogonal to it, their cross product."""
    along = normalized(along)
    pole = normalized(pole - along * (pole @ along))
    return np.stack([along, pole, np.cross(along, pole)], 1)


def _with_even_feet(anatomy: Anatomy, rest: Rest, pose: Pose) -> Pose:
    """Bends the knee of the leg that reaches lower until both ankles are equally high."""
    lengths = [
        np.linalg.norm(rest.heads[anatomy.bones[b]] - rest.heads[anatomy.bones[a]])
        for a, b in (("upperleg01.L", "lowerleg01.L"), ("lowerleg01.L", "foot.L"))
    ]
    left, right = (_reach(leg, lengths) for leg in (pose.left_leg, pose.right_leg))
    if left > right:
        return replace(pose, left_leg=_shortened(pose.left_leg, lengths, right))
    return replace(pose, right_leg=_shortened(pose.right_leg, lengths, left))


def _reach(leg: Leg, lengths: list[float]) -> float:
    """How far below the hip the ankle is, metres; the same on either side."""
    upper, _, lower, _ = _leg_axes(leg, 1)
    return -(lengths[0] * upper[2] + lengths[1] * lower[2])


def _shortened(leg: Leg, lengths: list[float], reach: float) -> Leg:
    low, high = 0.0, 45.0
    for _ in range(20):
        bend = (low + high) / 2
        longer = _reach(replace(leg, forward=leg.forward + bend, flex=leg.flex + 2 * bend), lengths) > reach
        low, high = (bend, high) if longer else (low, bend)
    return replace(leg, forward=leg.forward + low, flex=leg.flex + 2 * low)
