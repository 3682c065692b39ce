"""Pictures in and out: opening untrusted files, letterboxing, cropping, normalising, saving."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from bolid_sdk.errors import ImageError
from bolid_sdk.files import atomic_file

ImageSource: TypeAlias = str | os.PathLike[str] | Image.Image | NDArray[np.uint8]
FloatArray: TypeAlias = NDArray[np.float32]

MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF")
"""Pillow reads many more, some of them through other programs: not for files from strangers."""
PAD_COLOUR = (127, 127, 127)
"""Padding is mid-grey: about zero after normalisation, so a network sees it as nothing."""


@dataclass(frozen=True, kw_only=True)
class Letterbox:
    """Where a picture lies inside its letterboxed copy, in [0, 1] coordinates of the copy."""

    left: float
    top: float
    width: float
    height: float

    def to_source(self, points: FloatArray) -> FloatArray:
        """Maps `points` [..., 2 or 3], (x, y) in the copy's [0, 1] coordinates, to the picture's own."""
        mapped = points.copy()
        mapped[..., 0] = (points[..., 0] - self.left) / self.width
        mapped[..., 1] = (points[..., 1] - self.top) / self.height
        return mapped


def open_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Opens a path, a PIL image or a uint8 array [H, W], [H, W, 1] or [H, W, 3] as upright RGB.

    Without alpha: white shows through. The size in the header is checked before anything is decoded. Raises ImageError.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if not isinstance(source, Image.Image | str | os.PathLike):
        raise ImageError(f"{type(source).__name__} is no picture; expected a path, a PIL image or an array")
    path = "the given picture" if isinstance(source, Image.Image) else Path(source)
    try:
        with nullcontext(source) if isinstance(source, Image.Image) else Image.open(path, formats=FORMATS) as image:
            return _decode(image, str(path), max_pixels)
    except FileNotFoundError:
        raise ImageError(f"no such picture: {path}; expected the path of a PNG, JPEG or WebP file") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder; expected the path of a picture") from None
    except PermissionError:
        raise ImageError(f"{path} may not be read; check the file's permissions") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path} is not a picture; expected one of {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{path} has far more than the {max_pixels:,} pixels that are read; scale it down") from None
    except ImageError:
        raise
    # Pillow's parsers raise whatever a malformed file leads them to.
    except Exception as error:
        raise ImageError(f"{path} cannot be read ({error}); the file seems damaged, save it again") from error


def letterbox(image: Image.Image, width: int, height: int) -> tuple[Image.Image, Letterbox]:
    """Scales `image` to fit `width` x `height` and centres it on grey. Returns the copy and the way back."""
    scale = min(width / image.width, height / image.height)
    inner_width = max(1, round(image.width * scale))
    inner_height = max(1, round(image.height * scale))
    left, top = (width - inner_width) // 2, (height - inner_height) // 2
    canvas = Image.new("RGB", (width, height), PAD_COLOUR)
    canvas.paste(image.resize((inner_width, inner_height), Image.Resampling.BICUBIC, reducing_gap=3.0), (left, top))
    place = Letterbox(left=left / width, top=top / height, width=inner_width / width, height=inner_height / height)
    return canvas, place


def crop_resize(image: Image.Image, boxes: NDArray[np.floating], size: int) -> NDArray[np.uint8]:
    """Cuts `boxes` [n, 4] (x0, y0, x1, y1 in [0, 1], may exceed the picture) to uint8 [n, size, size, 3]."""
    return np.stack([np.asarray(_crop(image, box, size)) for box in np.asarray(boxes, np.float64)])


def stack_pixels(images: Iterable[Image.Image]) -> NDArray[np.uint8]:
    """RGB pictures of one size as uint8 [n, H, W, 3]."""
    return np.stack([np.asarray(image.convert("RGB")) for image in images])


def normalise(pixels: NDArray[np.uint8], mean: Sequence[float], std: Sequence[float]) -> FloatArray:
    """uint8 [n, H, W, 3] -> float32 [n, 3, H, W], `(pixels / 255 - mean) / std` for each channel."""
    scale = 1.0 / (255.0 * np.asarray(std, np.float32))
    shift = np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    scaled = pixels.astype(np.float32) * scale.astype(np.float32) - shift
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def to_signed(pixels: NDArray[np.uint8]) -> FloatArray:
    """uint8 [n, H, W, 3] -> float32 [n, 3, H, W] in [-1, 1]."""
    return normalise(pixels, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def from_signed(pixels: FloatArray) -> list[Image.Image]:
    """float32 [n, 3, H, W] in [-1, 1] (clipped) -> RGB pictures."""
    values = np.clip(np.rint(pixels * 127.5 + 127.5), 0, 255).astype(np.uint8)
    return [Image.fromarray(np.ascontiguousarray(picture)) for picture in values.transpose(0, 2, 3, 1)]


def save_png(image: Image.Image, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None) -> Path:
    """Writes a PNG whole or not at all: temporary sibling, fsync, rename. Raises OutputError."""
    info = PngInfo()
    for key, value in (metadata or {}).items():
        info.add_itxt(key, value)
    with atomic_file(path) as file:
        image.save(file, format="PNG", pnginfo=info)
    return Path(path)


def _from_array(array: NDArray[np.uint8]) -> Image.Image:
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    shape_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)
    if array.dtype != np.uint8 or not shape_fits or 0 in array.shape:
        raise ImageError(f"an array of {array.dtype} {array.shape} is no picture; expected uint8 [height, width, 3]")
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _decode(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    pixels = image.width * image.height
    if pixels > max_pixels:
        raise ImageError(
            f"{name} has {image.width} x {image.height} = {pixels:,} pixels; at most {max_pixels:,} are read, "
            "scale it down first"
        )
    if pixels == 0:
        raise ImageError(f"{name} is empty ({image.width} x {image.height}); expected at least one pixel")
    image.load()
    return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layered = image.convert("RGBA")
        background = Image.new("RGBA", layered.size, (255, 255, 255, 255))
        return Image.alpha_composite(background, layered).convert("RGB")
    return image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """16- and 32-bit grey: Pillow clips these at 255, so the range is brought to 8 bits here."""
    values = np.asarray(image, np.float64)
    peak = 1.0 if image.mode == "F" and values.max(initial=0.0) <= 1.0 else (65535.0 if values.max() > 255 else 255.0)
    grey = np.clip(np.nan_to_num(values / peak), 0, 1) * 255
    return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")


def _crop(image: Image.Image, box: NDArray[np.float64], size: int) -> Image.Image:
    canvas = Image.new("RGB", (size, size), PAD_COLOUR)
    columns = _visible(box[0] * image.width, box[2] * image.width, image.width, size)
    rows = _visible(box[1] * image.height, box[3] * image.height, image.height, size)
    if columns is None or rows is None:
        return canvas
    source = (columns[0], rows[0], columns[1], rows[1])
    target = (columns[3] - columns[2], rows[3] - rows[2])
    piece = image.resize(target, Image.Resampling.BICUBIC, box=source, reducing_gap=3.0)
    canvas.paste(piece, (columns[2], rows[2]))
    return canvas


def _visible(start: float, stop: float, length: int, size: int) -> tuple[float, float, int, int] | None:
    """The part of [start, stop] inside [0, length], and the whole pixels of the output it covers.

    Only that part is resampled, so a box far larger than the picture costs no memory.
    """
    scale = size / (stop - start)
    first = round((max(start, 0.0) - start) * scale)
    last = round((min(stop, float(length)) - start) * scale)
    if last <= first:
        return None
    source_start = min(max(start + first / scale, 0.0), float(length))
    source_stop = min(max(start + last / scale, 0.0), float(length))
    if source_stop <= source_start:
        return None
    return source_start, source_stop, int(first), int(last)
