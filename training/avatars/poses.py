"""What the person does: directions of the limbs and turns of the trunk, by class of pose.

All angles are degrees. The body faces -y, its left is +x, up is +z.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

POSE_CLASSES = (
    "standing",
    "walking",
    "running",
    "sitting",
    "lying",
    "kneeling",
    "crouching",
    "jumping",
    "arms raised",
    "waving",
)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """`forward` turns the hanging upper arm to the front, `out` away from the body (180: overhead);
    `flex` bends the elbow, the forearm moving towards `pole` (x outward, y back, z up, in the chest's frame)."""

    forward: float = 0.0
    out: float = 8.0
    flex: float = 15.0
    pole: tuple[float, float, float] = (-0.3, -1.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Leg:
    """`forward` and `out` as for arms; `flex` bends the knee, which points forward turned outward by `turn`;
    `foot` lowers the toes, from the shin's right angle, or from level if `level`."""

    forward: float = 0.0
    out: float = 3.0
    flex: float = 3.0
    turn: float = 5.0
    foot: float = 0.0
    level: bool = True


@dataclass(frozen=True, kw_only=True)
class Pose:
    """A pose of class `kind`. Turns are (forward, to the left side, about the axis to the left)."""

    kind: str
    root: tuple[float, float, float] = (0.0, 0.0, 0.0)  # the whole body; forward -90 lies on the back
    spine: tuple[float, float, float] = (0.0, 0.0, 0.0)
    head: tuple[float, float, float] = (0.0, 0.0, 0.0)
    left_arm: Arm = field(default_factory=Arm)
    right_arm: Arm = field(default_factory=Arm)
    left_leg: Leg = field(default_factory=Leg)
    right_leg: Leg = field(default_factory=Leg)
    even_feet: bool = False  # bend the longer leg until both feet are on the ground
    seated: bool = False  # on a seat rather than on the ground
    lift: float = 0.0  # metres between the lowest point and the ground


def sample_pose(rng: np.random.Generator, kind: str | None = None) -> Pose:
    """A random pose of class `kind` (one of POSE_CLASSES), or of any; half of them mirrored."""
    kind = kind or str(rng.choice(POSE_CLASSES))
    if kind not in _SAMPLERS:
        raise ValueError(f"no pose class {kind!r}; there are {', '.join(POSE_CLASSES)}")
    pose = _SAMPLERS[kind](rng)
    return mirrored(pose) if rng.random() < 0.5 else pose


def mirrored(pose: Pose) -> Pose:
    """The pose with left and right exchanged."""
    flipped = {name: (a, -b, -c) for name in ("root", "spine", "head") for a, b, c in [getattr(pose, name)]}
    return replace(
        pose,
        **flipped,
        left_arm=pose.right_arm,
        right_arm=pose.left_arm,
        left_leg=pose.right_leg,
        right_leg=pose.left_leg,
    )


def _head(rng: np.random.Generator, pitch: float = 0.0) -> tuple[float, float, float]:
    return (pitch + rng.normal(0, 6), rng.normal(0, 4), rng.uniform(-25, 25))


def _spine(rng: np.random.Generator, lean: float = 0.0) -> tuple[float, float, float]:
    return (lean + rng.normal(0, 3), rng.normal(0, 3), rng.normal(0, 6))


def _hanging(rng: np.random.Generator) -> Arm:
    return Arm(forward=rng.uniform(-10, 15), out=rng.uniform(6, 18), flex=rng.uniform(5, 30))


def _on_hip(rng: np.random.Generator) -> Arm:
    return Arm(
        forward=rng.uniform(-25, -15), out=rng.uniform(38, 48), flex=rng.uniform(82, 95), pole=(-1.0, -0.55, 0.0)
    )


def _reaching(rng: np.random.Generator) -> Arm:
    return Arm(forward=rng.uniform(30, 85), out=rng.uniform(5, 30), flex=rng.uniform(5, 60), pole=(-0.3, -0.5, 1.0))


def _aside(rng: np.random.Generator) -> Arm:
    return Arm(forward=rng.uniform(-5, 20), out=rng.uniform(45, 90), flex=rng.uniform(0, 40), pole=(-0.2, -1.0, 0.2))


def _any_arm(rng: np.random.Generator) -> Arm:
    return rng.choice([_hanging, _hanging, _hanging, _on_hip, _reaching, _aside])(rng)


def _stance(rng: np.random.Generator) -> dict:
    """Two legs that carry a standing body, sometimes one of them relaxed or forward."""
    out, step = rng.uniform(2, 12), rng.choice([0.0, 0.0, rng.uniform(4, 16)])
    relaxed = rng.choice([0.0, rng.uniform(5, 25)])
    return {
        "left_leg": Leg(forward=step / 2, out=out, flex=rng.uniform(1, 5), turn=rng.uniform(0, 18)),
        "right_leg": Leg(forward=relaxed / 2 - step / 2, out=out, flex=relaxed + 2, turn=rng.uniform(0, 22)),
        "even_feet": True,
    }


def _standing(rng: np.random.Generator) -> Pose:
    arms = {"left_arm": _any_arm(rng), "right_arm": _any_arm(rng)}
    return Pose(kind="standing", spine=_spine(rng), head=_head(rng), **arms, **_stance(rng))


def _gait(rng: np.random.Generator, kind: str, stride: float, lean: float, elbow: float, **legs: Leg) -> Pose:
    """Arms swing against the legs, the shoulders turn with them; the left leg is in front."""
    swing = stride * rng.uniform(0.8, 1.1)
    return Pose(
        kind=kind,
        root=(lean, 0, 0),
        spine=(lean / 2, rng.normal(0, 2), stride * 0.25),
        head=(-lean + rng.normal(0, 4), 0, -stride * 0.2 + rng.uniform(-15, 15)),
        left_arm=Arm(forward=-swing, out=rng.uniform(8, 15), flex=elbow),
        right_arm=Arm(forward=swing, out=rng.uniform(8, 15), flex=elbow + rng.uniform(0, 15)),
        **legs,
    )


def _walking(rng: np.random.Generator) -> Pose:
    stride = rng.uniform(16, 30)
    front = Leg(forward=stride, out=2, flex=rng.uniform(3, 12), turn=3, foot=rng.uniform(-18, 0))
    back = Leg(forward=-stride * 0.7, out=2, flex=rng.uniform(10, 35), turn=4, foot=rng.uniform(20, 40))
    return _gait(rng, "walking", stride, rng.uniform(0, 5), rng.uniform(12, 30), left_leg=front, right_leg=back)


def _running(rng: np.random.Generator) -> Pose:
    stride = rng.uniform(40, 65)
    front = Leg(forward=stride, out=3, flex=rng.uniform(60, 95), turn=2, foot=rng.uniform(0, 15), level=False)
    back = Leg(forward=-stride * 0.45, out=3, flex=rng.uniform(20, 80), turn=3, foot=rng.uniform(25, 45), level=False)
    pose = _gait(rng, "running", stride, rng.uniform(6, 14), rng.uniform(75, 100), left_leg=front, right_leg=back)
    return replace(pose, lift=rng.choice([0.0, rng.uniform(0.02, 0.12)]))


def _lap_arm(rng: np.random.Generator, *, beside: bool = True) -> Arm:
    """A hand on the thigh, in the lap, reaching out or, if there is room `beside` the seat, there."""
    arms = [
        Arm(forward=rng.uniform(15, 30), out=rng.uniform(8, 15), flex=rng.uniform(50, 70), pole=(-0.2, -1.0, 0.2)),
        Arm(forward=rng.uniform(10, 20), out=rng.uniform(12, 20), flex=rng.uniform(75, 95), pole=(-0.6, -1.0, 0.2)),
        _reaching(rng),
        Arm(forward=rng.uniform(-15, 0), out=rng.uniform(20, 28), flex=rng.uniform(5, 20)),
    ]
    return arms[rng.integers(4 if beside else 3)]


def _sitting(rng: np.random.Generator) -> Pose:
    if rng.random() < 0.2:
        return _sitting_on_ground(rng)
    arms = {"left_arm": _lap_arm(rng), "right_arm": _lap_arm(rng)}
    spine, head = _spine(rng, rng.uniform(-4, 14)), _head(rng)
    legs = {}
    tilt, out = rng.uniform(-6, 6), rng.uniform(4, 18)
    for side in ("left_leg", "right_leg"):
        thigh = rng.uniform(82, 90) + tilt
        legs[side] = Leg(forward=thigh, out=out, flex=thigh - tilt + rng.uniform(-22, 12), turn=out * 0.6)
    return Pose(kind="sitting", seated=True, root=(tilt, 0, 0), spine=spine, head=head, **arms, **legs)


def _sitting_on_ground(rng: np.random.Generator) -> Pose:
    arms = {side: _lap_arm(rng, beside=False) for side in ("left_arm", "right_arm")}
    raised = rng.choice([0.0, rng.uniform(15, 40)])
    tilt, out = -rng.uniform(0, 12), rng.uniform(4, 16)
    straight = 85 + tilt
    legs = {
        "left_leg": Leg(forward=straight + raised, out=out, flex=5 + 2.1 * raised, turn=8, foot=15, level=False),
        "right_leg": Leg(forward=straight, out=out, flex=rng.uniform(3, 10), turn=12, foot=20, level=False),
    }
    return Pose(kind="sitting", root=(tilt, 0, 0), spine=_spine(rng, 12), head=_head(rng, 5), **arms, **legs)


def _lying(rng: np.random.Generator) -> Pose:
    style = rng.choice(["back", "side", "front"])
    bend, out = rng.choice([0.0, rng.uniform(10, 40)]), rng.uniform(3, 12)
    relaxed = Leg(forward=2, out=out, flex=rng.uniform(3, 10), turn=15, foot=20, level=False)
    raised = Leg(forward=bend + 2, out=out, flex=2 * bend + 5, turn=8, foot=10, level=False)
    spread = Arm(forward=rng.uniform(5, 15), out=rng.uniform(15, 75), flex=rng.uniform(5, 40), pole=(-0.6, -0.6, 0.3))
    if style == "back":
        other = rng.choice(
            [_hanging(rng), Arm(forward=8, out=rng.uniform(100, 150), flex=rng.uniform(40, 90), pole=(-1, 0, 0.6))]
        )
        legs = {"left_leg": raised, "right_leg": relaxed}
        return Pose(kind="lying", root=(-90, 0, 0), head=_head(rng), left_arm=spread, right_arm=other, **legs)
    if style == "front":
        under = Arm(forward=6, out=rng.uniform(100, 140), flex=rng.uniform(60, 100), pole=(-0.5, -0.4, 1.0))
        legs = {"left_leg": replace(relaxed, foot=55), "right_leg": replace(relaxed, foot=55)}
        return Pose(
            kind="lying", root=(88, 0, 0), head=(-12, 0, rng.uniform(-60, 60)), left_arm=under, right_arm=under, **legs
        )
    thigh = rng.uniform(15, 60)
    low = Leg(forward=thigh, out=0, flex=thigh * 1.4, turn=0, foot=20, level=False)
    high = Leg(forward=thigh + rng.uniform(0, 25), out=-9, flex=thigh * 1.5, turn=0, foot=20, level=False)
    front = Arm(forward=rng.uniform(50, 90), out=0, flex=rng.uniform(20, 80), pole=(-0.4, -0.3, 1.0))
    top = Arm(forward=rng.uniform(15, 60), out=4, flex=rng.uniform(20, 60), pole=(-0.4, -1.0, 0.0))
    return Pose(
        kind="lying", root=(0, -88, 0), spine=_spine(rng, 8), head=(5, rng.uniform(-5, 10), 0),
        left_arm=top, right_arm=front, left_leg=high, right_leg=low,
    )  # fmt: skip


def _kneeling(rng: np.random.Generator) -> Pose:
    arms = {"left_arm": _any_arm(rng), "right_arm": _any_arm(rng)}
    common = {"kind": "kneeling", "head": _head(rng, 3), **arms}
    if rng.random() < 0.45:
        down = Leg(
            forward=rng.uniform(-5, 5), out=4, flex=rng.uniform(88, 95), turn=3, foot=rng.uniform(-20, 55), level=False
        )
        up = Leg(forward=rng.uniform(80, 90), out=rng.uniform(4, 14), flex=rng.uniform(82, 92), turn=6)
        return Pose(spine=_spine(rng, 6), left_leg=up, right_leg=down, **common)
    sunk = rng.choice([rng.uniform(0, 10), rng.uniform(10, 60), rng.uniform(55, 65)])
    knee = Leg(forward=sunk, out=rng.uniform(4, 12), flex=90 + sunk, turn=5, foot=60, level=False)
    return Pose(spine=_spine(rng, 5), left_leg=knee, right_leg=knee, **common)


def _crouching(rng: np.random.Generator) -> Pose:
    thigh, out = rng.uniform(85, 120), rng.uniform(8, 25)
    shin = rng.uniform(18, 32)
    heel = rng.uniform(0, 25) if thigh > 100 else 0.0
    leg = Leg(forward=thigh, out=out, flex=thigh + shin, turn=out, foot=heel)
    low = Arm(forward=rng.uniform(35, 60), out=rng.uniform(14, 26), flex=rng.uniform(10, 70), pole=(-0.5, -1.0, 0.3))
    arms = {"left_arm": low, "right_arm": rng.choice([low, _reaching(rng)])}
    lean = rng.uniform(15, 30)
    return Pose(
        kind="crouching", root=(lean, 0, 0), spine=_spine(rng, rng.uniform(8, 22)), head=_head(rng, -lean),
        left_leg=leg, right_leg=replace(leg, forward=thigh + rng.uniform(-5, 5)), **arms,
    )  # fmt: skip


def _jumping(rng: np.random.Generator) -> Pose:
    height = rng.uniform(0.12, 0.4)
    common = {"kind": "jumping", "spine": _spine(rng, -3), "head": _head(rng, -5), "lift": height}
    arms = {"left_arm": _high_arm(rng, 60, 160), "right_arm": _high_arm(rng, 60, 160)}
    tuck, out = rng.uniform(0, 70), rng.uniform(4, 28)
    legs = {
        "left_leg": Leg(forward=tuck, out=out, flex=tuck * 1.4 + 8, turn=8, foot=30, level=False),
        "right_leg": Leg(
            forward=rng.choice([tuck, -20.0]), out=out, flex=rng.uniform(10, 90), turn=8, foot=35, level=False
        ),
    }
    return Pose(**common, **arms, **legs)


def _high_arm(rng: np.random.Generator, low: float, high: float) -> Arm:
    return Arm(forward=rng.uniform(0, 15), out=rng.uniform(low, high), flex=rng.uniform(3, 35), pole=(-0.6, -0.5, 0.8))


def _arms_raised(rng: np.random.Generator) -> Pose:
    arms = {"left_arm": _high_arm(rng, 125, 172), "right_arm": _high_arm(rng, 125, 172)}
    if rng.random() < 0.3:
        raised = {"forward": rng.uniform(150, 175), "flex": rng.uniform(0, 25)}
        arms = {side: Arm(out=rng.uniform(3, 15), pole=(-0.3, 0.5, 1.0), **raised) for side in arms}
    return Pose(kind="arms raised", spine=_spine(rng, -2), head=_head(rng, -4), **arms, **_stance(rng))


def _waving(rng: np.random.Generator) -> Pose:
    pole = (rng.uniform(-0.5, 0.3), -0.25, 1.0)
    wave = Arm(forward=rng.uniform(5, 25), out=rng.uniform(60, 110), flex=rng.uniform(65, 110), pole=pole)
    if rng.random() < 0.3:
        wave = Arm(
            forward=rng.uniform(0, 15), out=rng.uniform(135, 165), flex=rng.uniform(5, 35), pole=(-0.5, -0.4, 1.0)
        )
    other = rng.choice([_hanging, _hanging, _on_hip])(rng)
    return Pose(kind="waving", spine=_spine(rng), head=_head(rng), left_arm=wave, right_arm=other, **_stance(rng))


_SAMPLERS: dict[str, Callable[[np.random.Generator], Pose]] = {
    "standing": _standing,
    "walking": _walking,
    "running": _running,
    "sitting": _sitting,
    "lying": _lying,
    "kneeling": _kneeling,
    "crouching": _crouching,
    "jumping": _jumping,
    "arms raised": _arms_raised,
    "waving": _waving,
}
