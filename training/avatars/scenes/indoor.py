"""Rooms. The wall behind the person faces -y, the camera's side and the ceiling are open."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bolid_training.avatars.scenes import props
from bolid_training.avatars.scenes.builder import Builder, linear
from bolid_training.avatars.scenes.scene import Place, SceneObject, Stage, beside, named, pick

WALLS = ("#e6dcc8", "#d5dde0", "#c7d3bd", "#e5cfc0", "#b9c8d6", "#ddd3e0", "#eae6dd", "#cbb795", "#9fb5b0")
WOODS = ("#8a5f3a", "#a87a4c", "#6d4a30", "#b98f5f")
FURNITURE = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "grey", "black")


@dataclass(frozen=True, kw_only=True)
class Room:
    """back: y of the wall; left and right: x of the side walls, metres."""

    back: float
    left: float
    right: float


def room(b: Builder, stage: Stage, wall: str, floor: str = "wood") -> Room:
    """Floor, three walls and a skirting board."""
    plan = Room(
        back=stage.clearance + b.rng.uniform(1.3, 2.4),
        left=-b.rng.uniform(2.4, 3.6) - stage.clearance * 0.5,
        right=b.rng.uniform(2.4, 3.6) + stage.clearance * 0.5,
    )
    _floor(b, plan, floor)
    height, depth = 3.0, plan.back + 10
    b.panel((plan.left, plan.back, 0), (plan.right - plan.left, 0, 0), (0, 0, height), wall)
    b.panel((plan.left, -10, 0), (0, depth, 0), (0, 0, height), linear(wall) * 0.86)
    b.panel((plan.right, -10, 0), (0, depth, 0), (0, 0, height), linear(wall) * 0.86)
    middle, width = (plan.left + plan.right) / 2, plan.right - plan.left
    b.box((middle, plan.back - 0.02, 0), (width, 0.04, 0.12), "#f1eee7")
    return plan


def _floor(b: Builder, plan: Room, kind: str) -> None:
    width, depth = plan.right - plan.left, plan.back + 10
    corner, across, along = (plan.left, -10, 0), (width, 0, 0), (0, depth, 0)
    if kind == "wood":
        planks = linear(pick(b.rng, WOODS)) * b.rng.normal(1, 0.09, (4, int(width / 0.35), 1))
        b.tiles(corner, across, along, np.clip(planks, 0.01, 1))
    elif kind == "tiles":
        shades = np.stack([linear("#d8d5cd"), linear(pick(b.rng, ("#8d9aa0", "#c2bcae", "#55585a")))])
        checks = np.add.outer(np.arange(int(depth / 0.6)), np.arange(int(width / 0.6))) % 2
        b.tiles(corner, across, along, shades[checks])
    else:
        b.panel(corner, across, along, floor_color(b, kind))


def floor_color(b: Builder, kind: str) -> np.ndarray:
    """Plain floors: carpet or rubber."""
    choices = {"carpet": ("#9a8f80", "#7b8794", "#a58f86", "#6f7a68"), "rubber": ("#4c5157", "#3f4650", "#5a5f63")}
    return linear(pick(b.rng, choices[kind]))


def wall_color(b: Builder) -> str:
    return pick(b.rng, WALLS)


def window(b: Builder, stage: Stage, plan: Room, x: float, curtain: str | None = None) -> None:
    """A window that shows the time of day."""
    sky = linear("#10182e") if stage.night else linear("#bfe0f7") * 1.15
    props.window(b, x, plan.back, sky, None if curtain is None else named(curtain))


def rug(b: Builder, color: str) -> None:
    b.tube(
        (b.rng.uniform(-0.3, 0.3), b.rng.uniform(-0.2, 0.3), 0), b.rng.uniform(1.1, 1.6), 0.012, named(color), sides=20
    )


def sides(b: Builder) -> tuple[float, float]:
    """-1 and 1 in random order: what goes left and what goes right."""
    side = float(b.rng.choice((-1.0, 1.0)))
    return side, -side


def living_room(b: Builder, stage: Stage) -> list[SceneObject]:
    plan = room(b, stage, wall_color(b), "wood")
    here, there = sides(b)
    rug(b, pick(b.rng, FURNITURE))
    couch = pick(b.rng, FURNITURE)
    couch_x = here * b.rng.uniform(0.7, 1.5)
    props.sofa(b, (couch_x, plan.back - 0.5), named(couch))
    props.picture(b, couch_x + b.rng.uniform(-0.4, 0.1), plan.back, named(pick(b.rng, FURNITURE)))
    window(b, stage, plan, there * b.rng.uniform(1.1, 1.6), pick(b.rng, FURNITURE))
    objects = [SceneObject(name="sofa", color=couch, relation="in front of", position=(couch_x, plan.back - 0.5, 0.5))]
    if b.rng.random() < 0.5:
        color, spot = pick(b.rng, ("red", "yellow", "white", "green", "blue", "orange")), beside(b.rng, stage, 0.25)
        props.floor_lamp(b, spot, named(color))
        objects.append(SceneObject(name="lamp", color=color, relation="next to", position=(*spot, 1.3)))
    else:
        props.potted_plant(b, (there * (stage.clearance + 0.5), plan.back - 0.5), "#3d7a35")
    return objects


def bedroom(b: Builder, stage: Stage) -> list[SceneObject]:
    plan = room(b, stage, wall_color(b), pick(b.rng, ("wood", "carpet")))
    here, there = sides(b)
    cover = pick(b.rng, FURNITURE)
    bed_y = max(plan.back - 1.1, stage.clearance + 1.1)
    bed_x = here * b.rng.uniform(0.6, 1.4)
    props.bed(b, (bed_x, bed_y), named(cover))
    night_table = (bed_x - here * 1.25, plan.back - 0.35)
    b.box((*night_table, 0), (0.45, 0.4, 0.5), "#7a5436")
    b.tube((*night_table, 0.5), 0.03, 0.2, "#2c2a28", sides=5)
    b.tube((*night_table, 0.68), 0.16, 0.22, linear("#f5dfae") * 1.15, top=0.65)
    window(b, stage, plan, there * b.rng.uniform(1.2, 1.8), pick(b.rng, FURNITURE))
    return [SceneObject(name="bed", color=cover, relation="in front of", position=(bed_x, bed_y, 0.5))]


def kitchen(b: Builder, stage: Stage) -> list[SceneObject]:
    plan = room(b, stage, wall_color(b), "tiles")
    front = pick(b.rng, ("white", "light blue", "red", "green", "beige", "grey", "yellow"))
    width, middle = plan.right - plan.left, (plan.right + plan.left) / 2
    backsplash = linear("#e9ecec") * b.rng.normal(1, 0.06, (4, 26, 1))
    b.tiles((plan.left, plan.back - 0.01, 0.9), (width, 0, 0), (0, 0, 0.55), np.clip(backsplash, 0, 1))
    for z, height, depth in ((0.1, 0.78, 0.6), (1.5, 0.7, 0.35)):
        b.box((middle, plan.back - depth / 2, z), (width, depth, height), named(front) * 0.95)
        for x in np.arange(plan.left, plan.right, 0.6):
            b.box((x, plan.back - depth - 0.005, z), (0.025, 0.02, height), named(front) * 0.55)
    b.box((middle, plan.back - 0.31, 0.88), (width, 0.66, 0.05), "#4d4640")
    here, there = sides(b)
    oven = here * b.rng.uniform(0.7, 1.3)
    b.box((oven, plan.back - 0.62, 0.12), (0.58, 0.06, 0.72), "#1e2022")
    fridge, fridge_x = pick(b.rng, ("white", "red", "grey", "light blue")), there * b.rng.uniform(1.1, 1.7)
    b.box((fridge_x, plan.back - 0.38, 0), (0.75, 0.74, 1.9), named(fridge))
    b.box((fridge_x, plan.back - 0.76, 1.2), (0.75, 0.02, 0.03), named(fridge) * 0.5)
    for _ in range(3):
        x = b.rng.uniform(plan.left + 0.3, plan.right - 0.3)
        b.tube((x, plan.back - 0.3, 0.93), 0.09, 0.18, named(pick(b.rng, FURNITURE)))
    return [SceneObject(name="fridge", color=fridge, relation="in front of", position=(fridge_x, plan.back - 0.4, 1))]


def office(b: Builder, stage: Stage) -> list[SceneObject]:
    plan = room(b, stage, pick(b.rng, ("#dfe3e6", "#e8e6e0", "#c9d3da")), "carpet")
    here, there = sides(b)
    desk_x, desk_y = here * b.rng.uniform(0.8, 1.4), plan.back - 0.6
    props.table(b, (desk_x, desk_y), (1.6, 0.75, 0.74), pick(b.rng, (*WOODS, "#e6e3dc")))
    for dx in (-0.35, 0.35):
        b.box((desk_x + dx, desk_y + 0.1, 0.86), (0.55, 0.04, 0.36), "#191b1e")
        b.box((desk_x + dx, desk_y + 0.1, 0.74), (0.06, 0.06, 0.14), "#191b1e")
        screen = linear("#6db3e8") * (1.2 if stage.night else 0.9)
        b.panel((desk_x + dx - 0.25, desk_y + 0.07, 0.89), (0.5, 0, 0), (0, 0, 0.30), screen)
    b.tiles(
        (there * 1.2 - 0.55, plan.back - 0.03, 1.2),
        (1.1, 0, 0),
        (0, 0, 0.8),
        np.broadcast_to(linear("#f8f8f8"), (1, 1, 3)),
    )
    cabinet, cabinet_x = pick(b.rng, ("grey", "blue", "green", "red", "white")), there * b.rng.uniform(1.0, 1.7)
    b.box((cabinet_x, plan.back - 0.3, 0), (0.9, 0.5, 1.0), named(cabinet))
    for z in (0.32, 0.65):
        b.box((cabinet_x, plan.back - 0.56, z), (0.9, 0.02, 0.02), named(cabinet) * 0.5)
    if b.rng.random() < 0.5:
        props.potted_plant(b, beside(b.rng, stage, 0.25), "#3d7a35")
    return [
        SceneObject(name="cabinet", color=cabinet, relation="in front of", position=(cabinet_x, plan.back - 0.3, 0.6))
    ]


def gym(b: Builder, stage: Stage) -> list[SceneObject]:
    wall = pick(b.rng, ("#b8bcc0", "#d9d6ce", "#8f6f5a", "#6b7d8c"))
    plan = room(b, stage, wall, "rubber")
    width = plan.right - plan.left
    stripe = pick(b.rng, ("red", "yellow", "blue", "green", "orange"))
    b.panel((plan.left, plan.back - 0.01, 1.9), (width, 0, 0), (0, 0, 0.3), named(stripe))
    here, there = sides(b)
    rack_x = here * b.rng.uniform(0.9, 1.5)
    for z in (0.35, 0.75):
        b.box((rack_x, plan.back - 0.4, z), (1.6, 0.35, 0.05), "#2a2c2f")
        for dx in np.linspace(-0.65, 0.65, 5):
            for end in (-0.09, 0.09):
                b.ball((rack_x + dx + end, plan.back - 0.4, z + 0.12), 0.09, named(stripe) * 0.7)
    for z in np.arange(0.3, 2.0, 0.24):
        b.box((there * 1.5, plan.back - 0.12, z), (1.0, 0.05, 0.05), "#b98f5f")
    for dx in (-0.5, 0.5):
        b.box((there * 1.5 + dx, plan.back - 0.1, 0), (0.07, 0.12, 2.2), "#9b7446")
    mat = pick(b.rng, ("blue", "green", "red", "purple"))
    b.box((0, stage.clearance * 0.2, 0), (2.4 + stage.clearance, 1.7, 0.012), named(mat))
    ball, spot = pick(b.rng, ("red", "blue", "yellow", "pink", "green", "purple")), beside(b.rng, stage, 0.35)
    b.ball((*spot, 0.34), 0.34, named(ball))
    return [SceneObject(name="ball", color=ball, relation="next to", position=(*spot, 0.34))]


def library(b: Builder, stage: Stage) -> list[SceneObject]:
    plan = room(b, stage, pick(b.rng, ("#cbb795", "#e6dcc8", "#b9a98c")), pick(b.rng, ("wood", "carpet")))
    wood = pick(b.rng, WOODS)
    x = plan.left + 0.7
    while x < plan.right - 0.5:
        props.bookshelf(b, (x, plan.back - 0.2), 1.25, 2.3, linear(wood) * 0.8)
        x += 1.3
    here, _ = sides(b)
    spot = (here * (stage.clearance + 0.8), min(stage.clearance + 0.2, plan.back - 0.9))
    props.table(b, spot, (1.1, 0.6, 0.74), wood)
    for _ in range(3):
        b.box(
            (spot[0] + b.rng.uniform(-0.35, 0.35), spot[1], 0.74), (0.24, 0.18, b.rng.uniform(0.05, 0.2)),
            pick(b.rng, props.BOOK_COLORS), b.rng.uniform(0, 1),
        )  # fmt: skip
    return []


def hallway(b: Builder, stage: Stage) -> list[SceneObject]:
    """Narrow, deep, with doors on both sides and one at the end."""
    wall = wall_color(b)
    half = max(1.7, stage.clearance + 0.4)
    plan = Room(back=b.rng.uniform(5, 8), left=-half, right=half)
    _floor(b, plan, pick(b.rng, ("tiles", "wood", "carpet")))
    depth = plan.back + 10
    b.panel((-half, plan.back, 0), (2 * half, 0, 0), (0, 0, 2.7), wall)
    b.panel((-half, -10, 0), (0, depth, 0), (0, 0, 2.7), linear(wall) * 0.84)
    b.panel((half, -10, 0), (0, depth, 0), (0, 0, 2.7), linear(wall) * 0.84)
    b.panel((-half, 0.8, 2.7), (2 * half, 0, 0), (0, plan.back - 0.8, 0), "#f3f1ea")
    color = pick(b.rng, ("red", "blue", "green", "brown", "white", "yellow"))
    for side in (-half + 0.02, half - 0.02):
        for y in np.arange(b.rng.uniform(0.8, 1.6), plan.back - 1, 2.2):
            b.box((side, y + 0.45, 0), (0.05, 0.95, 2.05), named(color) * 0.9)
    b.box((0, plan.back - 0.03, 0), (0.95, 0.05, 2.05), named(color))
    b.ball((0.36, plan.back - 0.09, 1.0), 0.05, "#d8c27a")
    return [SceneObject(name="door", color=color, relation="in front of", position=(0.0, plan.back, 1.0))]


def studio(b: Builder, stage: Stage) -> list[SceneObject]:
    """A plain coloured backdrop that curves into the floor."""
    color = pick(b.rng, ("red", "orange", "yellow", "green", "blue", "light blue", "purple", "pink", "white", "grey",
                         "black", "beige", "brown"))  # fmt: skip
    back, bend = stage.clearance + b.rng.uniform(0.9, 1.8), np.linspace(0, np.pi / 2, 5)
    y = np.concatenate([[-14, -2], back - 0.8 + 0.8 * np.sin(bend), [back + 0.05]])
    z = np.concatenate([[0, 0], 0.8 - 0.8 * np.cos(bend), [8.0]])
    shade = np.broadcast_to(named(color), (len(y), 2, 3))
    b.surface(np.array([-16.0, 16.0]), y, np.repeat(z[:, None], 2, axis=1), shade)
    return [SceneObject(name="backdrop", color=color, relation="in front of", position=(0.0, back, 1.0))]


INDOOR = (
    Place(name="living room", build=living_room, indoor=True),
    Place(name="bedroom", build=bedroom, indoor=True),
    Place(name="kitchen", build=kitchen, indoor=True),
    Place(name="office", build=office, indoor=True),
    Place(name="gym", build=gym, indoor=True),
    Place(name="library", build=library, indoor=True),
    Place(name="hallway", build=hallway, indoor=True),
    Place(name="studio", build=studio, indoor=True, without=frozenset({"night"})),
)
