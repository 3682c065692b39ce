"""Contact sheets: many small pictures on one, for looking at data and at what a model makes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

LABEL_HEIGHT = 12


def contact_sheet(
    images: Sequence[np.ndarray], columns: int, labels: Sequence[str] | None = None, gap: int = 2
) -> Image.Image:
    """Pictures (uint8 [H, W, 3], all of one size) row by row, each with an optional line of text under it.

    A label may run on under pictures of the same row whose labels are empty.
    """
    if not len(images):
        raise ValueError("a contact sheet needs at least one picture")
    if labels is not None and len(labels) != len(images):
        raise ValueError(f"{len(images)} pictures but {len(labels)} labels; give one label a picture or none")
    height, width = images[0].shape[:2]
    cell_width, cell_height = width + gap, height + gap + (LABEL_HEIGHT if labels is not None else 0)
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * cell_width, rows * cell_height), "white")
    draw = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left, top = index % columns * cell_width, index // columns * cell_height
        sheet.paste(Image.fromarray(image), (left, top))
        if labels is not None:
            space = width + _empty_after(labels, index, columns) * cell_width
            draw.text((left, top + height), _fit(draw, labels[index], space), fill="black")
    return sheet


def _empty_after(labels: Sequence[str], index: int, columns: int) -> int:
    """How many labels after `index` are empty until the next text or the end of the row."""
    rest = labels[index + 1 : (index // columns + 1) * columns]
    return next((count for count, label in enumerate(rest) if label), len(rest))


def _fit(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    while text and draw.textlength(text) > width:
        text = text[:-1]
    return text
