"""docs/images/cpu.png from cpu.json: seconds a picture by system, and how cost grows, on one logarithmic axis.

python benchmarks/chart.py
"""

import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from standings import OURS, Row, cases, select

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "images" / "cpu.png"

WIDTH, LEFT, RIGHT, LINE, MARGIN = 1200, 440, 90, 26, 20
INK, PALE, GRID = (30, 30, 30), (120, 120, 120), (225, 225, 225)
COLOURS = {"gated": (38, 110, 190), "not gated": (150, 190, 230), "peer": (190, 120, 60)}
REFERENCES = {"identify alone": "one reference", "identify alone, 4 references": "four references"}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """`seconds` and their quartiles."""

    label: str
    seconds: float
    spread: tuple[float, float]
    kind: str


@dataclass(frozen=True, kw_only=True)
class Section:
    title: str
    bars: list[Bar]


def sections(document: Mapping[str, Any], avatar: Mapping[str, Any] | None = None) -> list[Section]:
    """What there is to show: the systems of the cases that most of them were measured in, then how cost grows."""
    rows = document["rows"]
    shown = [*_systems(rows), _growth(rows), _references(avatar or {})]
    return [section for section in shown if section.bars]


def _systems(rows: Sequence[Row]) -> Iterator[Section]:
    for case in (found for found in cases(rows) if found.batch == 1):
        for vae in sorted({row["vae"] for row in rows}):
            found = sorted(select(rows, case, vae).values(), key=lambda row: row["seconds_per_image"])
            if any(not row["ours"] for row in found):
                yield Section(title=f"{case}, decoder {vae}", bars=[bar(row, row["system"]) for row in found])


def _growth(rows: Sequence[Row]) -> Section:
    """Of ours without levers, one thing changed at a time or several."""
    found = [(case, select(rows, case).get(OURS)) for case in cases(rows)]
    bars = [bar(row, f"{case}, decoder {row['vae']}") for case, row in found if row]
    return Section(title=f"how cost grows: {OURS}, a picture", bars=bars if len(bars) > 1 else [])


def _references(avatar: Mapping[str, Any]) -> Section:
    """The embedded model's encoding of a person."""
    found = [row for row in avatar.get("results", []) if row["name"] in REFERENCES]
    bars = [
        Bar(
            label=f"{REFERENCES[row['name']]}, {row['backend']}",
            seconds=row["median_ms"] / 1000,
            spread=(row["q1_ms"] / 1000, row["q3_ms"] / 1000),
            kind="gated",
        )
        for row in found
    ]
    names = {row["name"] for row in found}
    return Section(title="embedded model: identifying a person", bars=bars if len(names) > 1 else [])


def bar(row: Row, label: str) -> Bar:
    kind = "peer" if not row["ours"] else "gated" if row["gated"] else "not gated"
    return Bar(label=label, seconds=row["seconds_per_image"], spread=tuple(row["spread"]), kind=kind)


def chart(shown: Sequence[Section]) -> Image.Image:
    """Raises ValueError when there is nothing to show."""
    if not shown:
        raise ValueError("cpu.json has no case in which a peer was measured beside ours: there is nothing to draw")
    seconds = [end for section in shown for each in section.bars for end in (each.seconds, *each.spread)]
    axis = Axis(low=10 ** math.floor(math.log10(min(seconds))), high=10 ** math.ceil(math.log10(max(seconds) * 1.001)))
    lines = sum(len(section.bars) + 2 for section in shown)
    image = Image.new("RGB", (WIDTH, (lines + 3) * LINE + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(image)
    _legend(draw)
    _grid(draw, axis, top=MARGIN + 2 * LINE, bottom=image.height - MARGIN)
    y = MARGIN + 3 * LINE
    for section in shown:
        draw.text((MARGIN, y), section.title, INK, _font(17))
        for number, each in enumerate(section.bars, 1):
            _draw_bar(draw, axis, each, y + number * LINE)
        y += (len(section.bars) + 2) * LINE
    return image


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Logarithmic, from `low` to `high` seconds, both powers of ten."""

    low: float
    high: float

    def x(self, seconds: float) -> float:
        share = math.log(seconds / self.low) / math.log(self.high / self.low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    @property
    def ticks(self) -> list[float]:
        decades = range(round(math.log10(self.low)), round(math.log10(self.high)))
        return [step * 10.0**decade for decade in decades for step in (1, 2, 5)] + [self.high]


def _draw_bar(draw: ImageDraw.ImageDraw, axis: Axis, shown: Bar, y: int) -> None:
    draw.text((LEFT - 10, y + LINE / 2), shown.label, INK, _font(15), anchor="rm")
    end = axis.x(shown.seconds)
    draw.rectangle((LEFT, y + 4, max(end, LEFT + 1), y + LINE - 4), COLOURS[shown.kind])
    low, high = (axis.x(value) for value in shown.spread)
    draw.line((low, y + LINE / 2, high, y + LINE / 2), INK, 2)
    draw.text((max(end, high) + 6, y + LINE / 2), f"{shown.seconds:.3g} s", INK, _font(14), anchor="lm")


def _grid(draw: ImageDraw.ImageDraw, axis: Axis, top: int, bottom: int) -> None:
    for tick in axis.ticks:
        x = axis.x(tick)
        draw.line((x, top + LINE - 6, x, bottom), GRID)
        draw.text((x, top), f"{tick:g}", PALE, _font(13), anchor="mt")


def _legend(draw: ImageDraw.ImageDraw) -> None:
    draw.text((MARGIN, MARGIN), "seconds a picture (median, quartiles), less is better", INK, _font(17))
    titles = {"gated": "BoLID", "not gated": "BoLID, its levers not gated", "peer": "others"}
    x = WIDTH - RIGHT
    for kind, title in reversed(titles.items()):
        x -= round(_font(15).getlength(title)) + 34
        draw.rectangle((x, MARGIN + 2, x + 14, MARGIN + 16), COLOURS[kind])
        draw.text((x + 20, MARGIN), title, INK, _font(15))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def main() -> None:
    document = json.loads((RESULTS / "cpu.json").read_text())
    avatar = RESULTS / "avatar.json"
    shown = sections(document, json.loads(avatar.read_text()) if avatar.exists() else None)
    try:
        chart(shown).save(PICTURE, optimize=True)
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
