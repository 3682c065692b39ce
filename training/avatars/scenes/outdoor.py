"""Places under the sky. The person stands at the origin, the camera looks along +y."""

from __future__ import annotations

import numpy as np

from bolid_training.avatars.scenes import props
from bolid_training.avatars.scenes.builder import Builder, Color, linear
from bolid_training.avatars.scenes.scene import Place, SceneObject, Stage, beside, named, pick

LEAVES = ("#3f7a2f", "#4f8a35", "#5d8f2c", "#2f6b38", "#7a8f2f")
BRIGHT = ("red", "orange", "yellow", "blue", "purple", "pink", "white")


def ground(b: Builder, color: Color, variety: float = 0.10, hills: float = 0.0, far: float = 90.0) -> None:
    """Flat near the person, perhaps rolling beyond; the colour varies by `variety`."""
    t = np.linspace(-1, 1, 24)
    x = np.sign(t) * (np.abs(t) * 6 + np.abs(t) ** 3 * 60)
    s = np.linspace(0, 1, 26)
    y = -14 + 22 * s + (far - 8) * s**4
    distance = np.hypot(*np.meshgrid(x, y))
    shape = distance.shape
    z = hills * b.rng.uniform(0, 1, shape) * np.clip((distance - 5) / 20, 0, 1)
    shade = linear(color) * (1 + variety * b.rng.normal(0, 1, (*shape, 1)))
    b.surface(x, y, z, np.clip(shade, 0.01, 1))


def scatter(b: Builder, stage: Stage, count: int, near: float, far: float) -> list[tuple[float, float]]:
    """Spots behind and at the sides of the person, none between it and the camera, sorted from near to far."""
    y = b.rng.uniform(near, far, count)
    aside = b.rng.choice((-1, 1), count) * b.rng.uniform(0.15, 0.75, count) * (y + 5)
    keep = np.abs(aside) > stage.clearance + 0.9
    return sorted(zip(aside[keep], y[keep], strict=True), key=lambda spot: spot[1])


def beach(b: Builder, stage: Stage) -> list[SceneObject]:
    ground(b, "#e2c994", 0.05)
    shore = b.rng.uniform(3.0, 5.5)
    b.panel((-90, shore, 0.03), (180, 0, 0), (0, 1.0, 0.0), "#f1f5f4")
    b.tiles(
        (-90, shore + 0.5, 0.05), (180, 0, 0), (0, 120, 0), np.stack([linear("#3fa6b8"), linear("#1f6fa8")])[:, None]
    )
    for _ in range(b.rng.integers(0, 3)):
        x = b.rng.uniform(-12, 12)
        b.panel((x, shore + b.rng.uniform(1.5, 6), 0.06), (b.rng.uniform(2, 5), 0, 0), (0, 0.18, 0), "#dceff2")
    for spot in scatter(b, stage, 3, 1.5, shore):
        props.rock(b, spot, b.rng.uniform(0.12, 0.35), "#8b8072")
    objects = []
    landmark = b.rng.choice(["umbrella", "palm tree", "ball", "none"])
    if landmark == "umbrella":
        color, spot = pick(b.rng, BRIGHT[:-1]), beside(b.rng, stage, 0.7, back=0.9)
        props.parasol(b, spot, named(color))
        objects.append(SceneObject(name="umbrella", color=color, relation="next to", position=(*spot, 1.8)))
    elif landmark == "palm tree":
        spot, height = beside(b.rng, stage, 0.4, back=1.5), b.rng.uniform(1.9, 2.5)
        props.palm(b, spot, height, "#3b8a3a")
        objects.append(SceneObject(name="palm tree", color="green", relation="next to", position=(*spot, height)))
    elif landmark == "ball":
        color, spot = pick(b.rng, BRIGHT), beside(b.rng, stage, 0.25)
        b.ball((*spot, 0.24), 0.24, named(color))
        objects.append(SceneObject(name="ball", color=color, relation="next to", position=(*spot, 0.24)))
    return objects


def forest(b: Builder, stage: Stage) -> list[SceneObject]:
    ground(b, "#4b4a26", 0.16)
    conifers = b.rng.random() < 0.5
    for spot in scatter(b, stage, 34, 1.5, 15):
        height, color = b.rng.uniform(3.5, 7), pick(b.rng, LEAVES)
        if conifers:
            props.conifer(b, spot, height, linear(color) * 0.75)
        else:
            props.leafy_tree(b, spot, height, linear(color) * 0.85)
    for x in np.linspace(-14, 14, 9):
        props.conifer(b, (x + b.rng.uniform(-1, 1), 16.5), b.rng.uniform(6, 9), linear("#2b4f2b"))
    for spot in scatter(b, stage, 5, 0.8, 5):
        props.bush(b, spot, b.rng.uniform(0.3, 0.55), pick(b.rng, LEAVES))
    return []


def park(b: Builder, stage: Stage) -> list[SceneObject]:
    ground(b, "#5f9a3c", 0.10)
    if b.rng.random() < 0.6:
        b.panel((-20, -0.9, 0.01), (40, 0, 0), (0, 1.9, 0), "#c9b48c")
    for spot in scatter(b, stage, 8, 3.5, 16):
        props.leafy_tree(b, spot, b.rng.uniform(3, 5.5), pick(b.rng, LEAVES))
    for x in np.linspace(-16, 16, 9):
        props.leafy_tree(b, (x + b.rng.uniform(-1, 1), 19), b.rng.uniform(4, 7), linear("#4c7d3c"))
    if b.rng.random() < 0.4:
        b.tube((b.rng.uniform(-4, 4), 7.5, 0), 2.2, 0.02, "#4d8fb5", sides=14)
    landmark = b.rng.choice(["tree", "lamp", "bush", "none"])
    spot = beside(b.rng, stage, 0.3, back=0.5)
    if landmark == "tree":
        props.leafy_tree(b, spot, b.rng.uniform(2.6, 3.6), named("green"))
        return [SceneObject(name="tree", color="green", relation="next to", position=(*spot, 1.7))]
    if landmark == "lamp":
        props.lamp_post(b, spot, named("black"))
        return [SceneObject(name="street lamp", color="black", relation="next to", position=(*spot, 1.2))]
    if landmark == "bush":
        props.bush(b, spot, 0.5, named("dark green"))
        return [SceneObject(name="bush", color="dark green", relation="next to", position=(*spot, 0.4))]
    return []


def city_street(b: Builder, stage: Stage) -> list[SceneObject]:
    ground(b, "#6d6d6e", 0.04)
    slabs = linear("#a7a49e") * b.rng.normal(1, 0.06, (9, 14, 1))
    b.tiles((-10, -8, 0.012), (20, 0, 0), (0, 9.8, 0), slabs)
    b.panel((-60, 2.0, 0.01), (120, 0, 0), (0, 5.4, 0), "#4a4b4e")
    for x in np.arange(-14, 14, 2.4):
        b.panel((x, 4.6, 0.03), (1.3, 0, 0), (0, 0.16, 0), "#e3e0d6")
    b.box((0, 8.4, 0), (120, 2.0, 0.15), "#9d9a94")
    x = -16.0
    while x < 16:
        width = b.rng.uniform(3, 6)
        wall = pick(b.rng, ("#b5654a", "#c9b18a", "#8f9aa3", "#d8d2c4", "#7c5a4a", "#a8a39a", "#c98f6a"))
        lit = 0.6 if stage.night else 0.05
        props.building(b, (x, 9.4 + b.rng.uniform(0, 0.4)), width, 6, b.rng.uniform(5, 12), wall, lit)
        x += width
    if b.rng.random() < 0.65:
        color = pick(b.rng, ("red", "blue", "yellow", "white", "black", "green", "orange"))
        spot = (float(b.rng.choice((-1, 1)) * b.rng.uniform(0.9, 2.0)), 3.4)
        props.car(b, spot, named(color))
        return [SceneObject(name="car", color=color, relation="in front of", position=(*spot, 0.7))]
    spot = beside(b.rng, stage, 0.25)
    props.lamp_post(b, spot, named("black"))
    return [SceneObject(name="street lamp", color="black", relation="next to", position=(*spot, 1.2))]


def mountains(b: Builder, stage: Stage) -> list[SceneObject]:
    meadow = b.rng.random() < 0.6
    ground(b, "#6f8a48" if meadow else "#80796c", 0.12, hills=0.8)
    _ridge(b, 42, b.rng.uniform(13, 19), "#6c7078", snow=0.5)
    _ridge(b, 26, b.rng.uniform(3, 4.5), "#5f7248" if meadow else "#77716a", snow=2.0)
    for spot in scatter(b, stage, 7, 3, 10):
        props.rock(b, spot, b.rng.uniform(0.2, 0.7), "#7d7a74")
    if meadow:
        for spot in scatter(b, stage, 6, 6, 16):
            props.conifer(b, spot, b.rng.uniform(1.8, 3), "#33592f")
    if b.rng.random() < 0.4:
        spot = beside(b.rng, stage, 0.5)
        props.rock(b, spot, 0.55, named("grey") * 0.9)
        return [SceneObject(name="rock", color="grey", relation="next to", position=(*spot, 0.3))]
    return []


def _ridge(b: Builder, y: float, height: float, color: Color, snow: float) -> None:
    """A jagged range across the view, faceted; above `snow` x height it is white."""
    columns, rise = 37, np.array([0.0, 0.4, 0.75, 1.0])
    x = np.linspace(-0.9 * y, 0.9 * y, columns)
    summits = b.rng.uniform(0.75, 1, 10) * np.tile((1.0, 0.5), 5)
    crest = height * np.interp(np.arange(columns), np.arange(0, columns, 4), summits)
    z = rise[:, None] * crest + b.rng.uniform(-0.06, 0.06, (4, columns)) * height * rise[:, None]
    shade = linear(color) * b.rng.uniform(0.7, 1.2, (4, columns, 1))
    white = np.clip((z / height - snow) * 8, 0, 1)[..., None]
    b.surface(x, y + rise * height * 0.8, z, shade * (1 - white) + white * linear("#f2f5fa"), smooth=False)


def desert(b: Builder, stage: Stage) -> list[SceneObject]:
    ground(b, pick(b.rng, ("#d69f5c", "#dcb06a", "#c98a4e")), 0.05, hills=2.6)
    for spot in scatter(b, stage, 5, 5, 18):
        props.cactus(b, spot, b.rng.uniform(1.4, 2.8), "#4d7a3c")
    for spot in scatter(b, stage, 4, 6, 20):
        props.rock(b, spot, b.rng.uniform(0.3, 1.2), "#a5603a")
    if b.rng.random() < 0.5:
        spot = beside(b.rng, stage, 0.4)
        props.cactus(b, spot, b.rng.uniform(1.2, 1.8), named("green") * 0.8)
        return [SceneObject(name="cactus", color="green", relation="next to", position=(*spot, 0.8))]
    return []


def snow_field(b: Builder, stage: Stage) -> list[SceneObject]:
    ground(b, "#e9eef5", 0.02, hills=0.9)
    for spot in scatter(b, stage, 9, 5, 18):
        props.conifer(b, spot, b.rng.uniform(2.5, 5.5), "#2f5b43", snow=True)
    if b.rng.random() < 0.4:
        _ridge(b, 45, b.rng.uniform(11, 16), "#8b95a5", snow=0.25)
    if b.rng.random() < 0.35:
        spot = beside(b.rng, stage, 0.4)
        for z, radius in ((0.32, 0.36), (0.82, 0.26), (1.22, 0.18)):
            b.ball((*spot, z), radius, "#f3f6fa")
        b.tube((spot[0], spot[1], 1.36), 0.15, 0.18, named("black"))
        b.beam((spot[0], spot[1] - 0.15, 1.22), (spot[0], spot[1] - 0.36, 1.2), 0.05, "#e07b28")
        return [SceneObject(name="snowman", color="white", relation="next to", position=(*spot, 0.8))]
    return []


def garden(b: Builder, stage: Stage) -> list[SceneObject]:
    ground(b, "#62a03e", 0.10)
    fence_color = pick(b.rng, ("white", "brown", "green"))
    distance = b.rng.uniform(3.6, 5)
    props.fence(b, distance, named(fence_color))
    for x in np.arange(-5.5, 5.6, 1.6):
        props.bush(b, (x, distance + 0.9), b.rng.uniform(0.7, 1.0), pick(b.rng, LEAVES))
    color = pick(b.rng, ("red", "yellow", "pink", "purple", "orange"))
    for x in np.arange(-3.6, 3.7, 1.2):
        props.flowers(b, (x + b.rng.uniform(-0.2, 0.2), distance - 0.7), 0.55, named(color))
    objects = [SceneObject(name="fence", color=fence_color, relation="in front of", position=(0.6, distance, 0.6))]
    if b.rng.random() < 0.5:
        wall, spot = pick(b.rng, ("white", "beige", "light blue", "yellow")), (b.rng.uniform(-3.5, 3.5), 11.0)
        props.house(b, spot, 5, named(wall), pick(b.rng, ("#8c3a2c", "#4d4a4a", "#6b3f2a")))
        objects.append(SceneObject(name="house", color=wall, relation="in front of", position=(*spot, 2.4)))
    spot = beside(b.rng, stage, 0.5)
    props.flowers(b, spot, 0.5, named(color))
    objects.append(SceneObject(name="flowers", color=color, relation="next to", position=(*spot, 0.3)))
    return objects


def football_field(b: Builder, stage: Stage) -> list[SceneObject]:
    ground(b, "#4f9140", 0.03)
    stripes = np.stack([linear("#4c9a3f"), linear("#3c8434")])[np.arange(16) % 2][:, None]
    b.tiles((-40, -10, 0.01), (80, 0, 0), (0, 40, 0), stripes)
    line = b.rng.uniform(0.8, 2.5)
    b.panel((-40, line, 0.02), (80, 0, 0), (0, 0.13, 0), "#f0f2ee")
    b.panel((b.rng.choice((-1, 1)) * b.rng.uniform(1.5, 4), line, 0.02), (0.13, 0, 0), (0, 20, 0), "#f0f2ee")
    middle, y = b.rng.uniform(-2.5, 2.5), 12.0
    for x in (-3.2, 3.2):
        b.beam((middle + x, y, 0), (middle + x, y, 2.4), 0.14, "#f4f4f2")
    b.beam((middle - 3.2, y, 2.4), (middle + 3.2, y, 2.4), 0.14, "#f4f4f2")
    net = np.where((np.add.outer(np.arange(8), np.arange(20)) % 2)[..., None], linear("#7fae77"), linear("#5d9a55"))
    b.tiles((middle - 3.2, y + 0.9, 0), (6.4, 0, 0), (0, 0, 2.4), net)
    crowd = np.stack([linear(c) for c in props.BOOK_COLORS])[b.rng.integers(0, 8, (6, 40))]
    b.tiles((-24, 22, 0.8), (48, 0, 0), (0, 4, 3.2), crowd)
    if b.rng.random() < 0.6:
        spot = beside(b.rng, stage, 0.12)
        b.ball((*spot, 0.14), 0.14, named("white"))
        return [SceneObject(name="ball", color="white", relation="next to", position=(*spot, 0.14))]
    return []


def rooftop(b: Builder, stage: Stage) -> list[SceneObject]:
    ground(b, "#77808a", 0.03)
    slabs = linear(pick(b.rng, ("#8d8a86", "#9a7f6d", "#777b80"))) * b.rng.normal(1, 0.04, (8, 12, 1))
    b.tiles((-9, -9, 0.01), (18, 0, 0), (0, 12.2, 0), slabs)
    edge = b.rng.uniform(2.4, 3.2)
    b.box((0, edge, 0), (18, 0.3, 0.75), "#b9b3aa")
    lit = 0.65 if stage.night else 0.08
    x = -26.0
    while x < 26:
        width = b.rng.uniform(3, 6)
        wall = linear(pick(b.rng, ("#7e8c99", "#a39a8e", "#8d7468", "#63707c"))) * b.rng.uniform(0.8, 1.1)
        props.building(b, (x, b.rng.uniform(16, 26)), width, 4, b.rng.uniform(2, 9), wall, lit)
        x += width
    if b.rng.random() < 0.5:
        color, spot = pick(b.rng, ("red", "blue", "grey", "brown")), beside(b.rng, stage, 0.5)
        tank = (spot[0], min(spot[1], edge - 0.9))
        b.tube((*tank, 0), 0.5, 1.3, named(color))
        b.tube((*tank, 1.3), 0.56, 0.35, named(color) * 0.8, top=0.0)
        return [SceneObject(name="water tank", color=color, relation="next to", position=(*tank, 0.8))]
    return []


NO_SNOW = frozenset({"snow"})
OUTDOOR = (
    Place(name="beach", build=beach, indoor=False, haze="#d8c08e", without=NO_SNOW),
    Place(name="forest", build=forest, indoor=False, haze="#3d4a26"),
    Place(name="park", build=park, indoor=False, haze="#5a9038"),
    Place(name="city street", build=city_street, indoor=False, haze="#6d6d6e"),
    Place(name="mountains", build=mountains, indoor=False, haze="#6f7a5c"),
    Place(
        name="desert",
        build=desert,
        indoor=False,
        haze="#d6a562",
        without=frozenset({"snow", "rain", "overcast", "fog"}),
    ),
    Place(name="snow field", build=snow_field, indoor=False, haze="#e4eaf2", without=frozenset({"rain"})),
    Place(name="garden", build=garden, indoor=False, haze="#5a9038"),
    Place(name="football field", build=football_field, indoor=False, haze="#4a8a3c"),
    Place(name="rooftop", build=rooftop, indoor=False, haze="#7c848c", without=NO_SNOW),
)
