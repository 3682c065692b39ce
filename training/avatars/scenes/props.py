"""Things that stand about in scenes, each a few primitives. `at` is (x, y) on the floor."""

from __future__ import annotations

import numpy as np

from bolid_training.avatars.parts import Part
from bolid_training.avatars.scenes.builder import Builder, Color, linear

TRUNK = "#5b4028"


def leafy_tree(b: Builder, at, height: float, color: Color) -> None:
    """Trunk and three clumps of leaves."""
    x, y = at
    b.tube((x, y, 0), 0.06 * height * 0.6, height * 0.6, TRUNK, top=0.6, sides=7)
    for _ in range(3):
        dx, dy, dz = b.rng.uniform(-0.13, 0.13, 3) * height
        b.leaves((x + dx, y + dy, height * 0.72 + dz), height * b.rng.uniform(0.2, 0.28), color)


def conifer(b: Builder, at, height: float, color: Color, snow: bool = False) -> None:
    """Three stacked cones."""
    x, y = at
    b.tube((x, y, 0), 0.03 * height, height * 0.25, TRUNK, sides=6)
    for level in range(3):
        foot = height * (0.16 + 0.24 * level)
        radius = height * (0.24 - 0.055 * level)
        b.tube((x, y, foot), radius, height * 0.40, linear(color) * (0.85 + 0.15 * level), top=0.0, sides=8)
        if snow:
            b.tube((x, y, foot + height * 0.15), radius * 0.66, height * 0.26, "#f4f7fb", top=0.0, sides=8)


def palm(b: Builder, at, height: float, color: Color) -> None:
    """A leaning trunk and eight drooping fronds."""
    x, y = at
    lean = b.rng.uniform(-0.2, 0.2, 2) * height
    crown = np.array([x + lean[0], y + lean[1], height])
    b.beam((x, y, 0), crown, 0.07 * height * 0.6, "#8a6a45")
    for angle in np.linspace(0, 2 * np.pi, 8, endpoint=False) + b.rng.uniform(0, 1):
        out = np.array([np.cos(angle), np.sin(angle), 0.0]) * height * 0.28
        knee = crown + out + (0, 0, 0.10 * height)
        tip = crown + 2 * out - (0, 0, 0.10 * height)
        side = np.array([-np.sin(angle), np.cos(angle), 0.0]) * height * 0.06
        vertices = np.array([crown, knee - side, knee + side, tip], np.float32)
        b.add(vertices, np.array([(0, 1, 2), (1, 3, 2)], np.int32), color, False, Part.BACKGROUND)


def bush(b: Builder, at, size: float, color: Color) -> None:
    """Two low clumps."""
    x, y = at
    for dx in (-0.3, 0.3):
        b.leaves((x + dx * size, y, size * 0.4), size * b.rng.uniform(0.45, 0.6), color)


def rock(b: Builder, at, size: float, color: Color) -> None:
    """An uneven boulder, half sunk."""
    b.leaves((*at, size * 0.25), (size, size * 0.8, size * b.rng.uniform(0.5, 0.9)), color)


def cactus(b: Builder, at, height: float, color: Color) -> None:
    """A saguaro with two arms."""
    x, y = at
    b.tube((x, y, 0), 0.11 * height, height, color, top=0.8, sides=9)
    for side, level in ((-1, 0.45), (1, 0.6)):
        elbow = x + side * 0.27 * height
        b.beam((x, y, level * height), (elbow, y, level * height), 0.11 * height, color)
        b.tube((elbow, y, (level - 0.05) * height), 0.065 * height, 0.35 * height, color, sides=7)


def parasol(b: Builder, at, color: Color) -> None:
    """A beach umbrella in a colour and white."""
    x, y = at
    b.tube((x, y, 0), 0.03, 2.1, "#e8e4da", sides=6)
    unit = np.linspace(0, 2 * np.pi, 11)
    shades = (linear(color), linear("#f5f2ea"))
    for i in range(10):
        rim = [(x + 1.15 * np.cos(a), y + 1.15 * np.sin(a), 1.75) for a in unit[i : i + 2]]
        b.add(
            np.array([*rim, (x, y, 2.3)], np.float32),
            np.array([(0, 1, 2)], np.int32),
            shades[i % 2],
            False,
            Part.BACKGROUND,
        )


def car(b: Builder, at, color: Color, along_x: bool = True) -> None:
    """Body, cabin with dark windows, wheels."""
    x, y = at
    yaw = 0.0 if along_x else np.pi / 2
    b.box((x, y, 0.3), (4.0, 1.7, 0.55), color, yaw)
    b.box((x, y, 0.85), (2.2, 1.5, 0.30), "#27323c", yaw)
    b.box((x, y, 1.15), (2.1, 1.5, 0.22), color, yaw)
    for along in (-1.25, 1.25):
        for across in (-0.8, 0.8):
            dx, dy = (along, across) if along_x else (across, along)
            b.ball((x + dx, y + dy, 0.32), (0.32, 0.14, 0.32) if along_x else (0.14, 0.32, 0.32), "#17181a")


def house(b: Builder, at, size: float, wall: Color, roof: Color) -> None:
    """A gabled house with a door and two windows."""
    x, y = at
    front = y - size * 0.4 - 0.02
    b.box((x, y, 0), (size, size * 0.8, size * 0.6), wall)
    b.roof((x, y, size * 0.6), (size * 1.15, size * 0.95, size * 0.4), roof)
    b.panel((x - 0.08 * size, front, 0), (0.17 * size, 0, 0), (0, 0, 0.36 * size), "#5a3a22")
    for dx in (-0.38, 0.20):
        b.panel((x + dx * size, front, 0.2 * size), (0.2 * size, 0, 0), (0, 0, 0.2 * size), "#9fc3dc")


def building(b: Builder, corner, width: float, depth: float, height: float, wall: Color, lit: float) -> None:
    """A block of flats at `corner` (x, y of its near left foot); `lit` is the share of windows with light on."""
    x, y = corner
    b.box((x + width / 2, y + depth / 2, 0), (width, depth, height), wall)
    floors, columns = max(2, int(height / 1.7)), max(2, int(width / 1.3))
    glass = np.where(b.rng.random((floors, columns, 1)) < lit, linear("#ffd98a") * 1.4, linear("#6d8496"))
    checks = np.broadcast_to(linear(wall) * 0.93, (2 * floors, 2 * columns, 3)).copy()
    checks[1::2, 1::2] = glass
    b.tiles((x, y - 0.02, 0), (width * 0.95, 0, 0), (0, 0, height * 0.95), checks)


def lamp_post(b: Builder, at, color: Color) -> None:
    """A street lamp."""
    x, y = at
    b.tube((x, y, 0), 0.06, 3.2, color, sides=6)
    b.ball((x, y, 3.3), 0.2, linear("#fff3c4") * 1.3)


def floor_lamp(b: Builder, at, color: Color) -> None:
    """A lamp with a coloured shade."""
    x, y = at
    b.tube((x, y, 0), 0.16, 0.04, "#2c2a28")
    b.tube((x, y, 0), 0.02, 1.4, "#2c2a28", sides=5)
    b.tube((x, y, 1.3), 0.24, 0.34, linear(color) * 1.15, top=0.65)


def potted_plant(b: Builder, at, color: Color) -> None:
    """A pot with leaves."""
    x, y = at
    b.tube((x, y, 0), 0.16, 0.34, "#a5562e", top=1.3)
    for _ in range(4):
        dx, dy = b.rng.uniform(-0.2, 0.2, 2)
        b.leaves((x + dx, y + dy, b.rng.uniform(0.55, 1.0)), (0.16, 0.16, 0.26), color)


def table(b: Builder, at, size, color: Color) -> None:
    """A top on four legs; size (width, depth, height)."""
    x, y = at
    width, depth, height = size
    b.box((x, y, height - 0.05), (width, depth, 0.05), color)
    for dx in (-0.45, 0.45):
        for dy in (-0.42, 0.42):
            b.box((x + dx * width, y + dy * depth, 0), (0.06, 0.06, height), linear(color) * 0.8)


def bookshelf(b: Builder, at, width: float, height: float, color: Color) -> None:
    """A case whose shelves are rows of coloured spines, facing -y."""
    x, y = at
    b.box((x, y, 0), (width, 0.34, height), color)
    shelves = max(3, int(height / 0.42))
    columns = max(6, int(width / 0.08))
    spines = np.stack([linear(c) for c in BOOK_COLORS])[b.rng.integers(0, len(BOOK_COLORS), (shelves, columns))]
    gap = height / shelves
    for row in range(shelves):
        b.tiles(
            (x - width * 0.47, y - 0.18, row * gap + 0.05),
            (width * 0.94, 0, 0),
            (0, 0, gap * 0.72),
            spines[row : row + 1],
        )


def bed(b: Builder, at, color: Color, width: float = 1.7) -> None:
    """Head against +y, cover in a colour."""
    x, y = at
    b.box((x, y, 0), (width, 2.0, 0.3), "#6b4a2e")
    b.box((x, y, 0.3), (width * 0.98, 1.98, 0.16), "#efece6")
    b.box((x, y - 0.3, 0.34), (width, 1.4, 0.16), color)
    b.box((x, y + 1.02, 0), (width, 0.08, 1.0), "#6b4a2e")
    for dx in (-0.25, 0.25):
        b.box((x + dx * width, y + 0.72, 0.44), (0.36 * width, 0.4, 0.14), "#f7f5f0")


def sofa(b: Builder, at, color: Color, width: float = 1.9) -> None:
    """A sofa against a wall, facing -y."""
    x, y = at
    b.box((x, y, 0.08), (width, 0.8, 0.36), color)
    b.box((x, y + 0.32, 0.4), (width, 0.2, 0.45), linear(color) * 0.9)
    for side in (-0.5, 0.5):
        b.box((x + side * width, y, 0.08), (0.18, 0.8, 0.55), linear(color) * 0.85)


def picture(b: Builder, x: float, wall_y: float, color: Color) -> None:
    """A framed picture on the back wall."""
    width, height = b.rng.uniform(0.5, 0.9), b.rng.uniform(0.45, 0.75)
    foot = b.rng.uniform(1.45, 1.7)
    b.box((x, wall_y - 0.02, foot), (width, 0.04, height), "#2e2620")
    inner = np.stack([linear(color), linear("#e9e3d3"), linear(color) * 0.5])[b.rng.integers(0, 3, (3, 3))]
    b.tiles((x - width * 0.42, wall_y - 0.05, foot + height * 0.1), (width * 0.84, 0, 0), (0, 0, height * 0.8), inner)


def window(b: Builder, x: float, wall_y: float, sky: Color, curtain: Color | None) -> None:
    """A window with a cross bar in the back wall, perhaps with curtains."""
    b.box((x, wall_y - 0.02, 0.9), (1.4, 0.06, 1.4), "#f2efe8")
    for dx in (-0.64, 0.02):
        for dz in (0.06, 0.72):
            b.panel((x + dx, wall_y - 0.07, 0.9 + dz), (0.62, 0, 0), (0, 0, 0.62), sky)
    if curtain is not None:
        for dx in (-0.88, 0.62):
            folds = linear(curtain) * np.tile([[[1.0], [0.78]]], (1, 3, 1))
            b.tiles((x + dx, wall_y - 0.10, 0.5), (0.28, 0, 0), (0, 0, 1.9), folds)


def fence(b: Builder, y: float, color: Color) -> None:
    """Pickets along x over the whole width."""
    for z in (0.3, 0.75):
        b.box((0, y, z), (16, 0.04, 0.09), color)
    for x in np.arange(-5, 5.1, 0.32):
        b.box((x, y - 0.04, 0), (0.14, 0.04, 1.05), color)


def flowers(b: Builder, at, size: float, color: Color) -> None:
    """A bed of blossoms over leaves."""
    x, y = at
    b.leaves((x, y, 0.08), (size, size * 0.6, 0.28), "#3f7d33")
    for _ in range(10):
        dx, dy = b.rng.uniform(-0.85, 0.85, 2) * (size, size * 0.5)
        b.tube((x + dx, y + dy, 0.28), 0.08, 0.14, color, top=0.7, sides=5)


BOOK_COLORS = ("#7d2b26", "#264b73", "#2f6041", "#c29a3b", "#5b3a63", "#d8cfbb", "#3a3a3c", "#a9552c")
