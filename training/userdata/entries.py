"""One picture with what is said of it, before anything of it is decoded."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from bolid_sdk.errors import ImageError, PoseError
from bolid_sdk.images import FORMATS, open_image
from bolid_sdk.pose import pose_from_array
from bolid_training.conditions import CONFIDENCE


@dataclass(frozen=True, kw_only=True)
class Blob:
    """A file, or the `size` bytes at `offset` of one."""

    path: Path
    offset: int = 0
    size: int | None = None

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(-1 if self.size is None else self.size)

    @property
    def stamp(self) -> tuple:
        """Changes when the file does."""
        state = self.path.stat()
        return str(self.path), self.offset, self.size, state.st_size, state.st_mtime_ns


@dataclass(frozen=True, kw_only=True)
class Entry:
    """`name` is for reports, `identity` is the same for all pictures of one person; `captions` may be empty.

    `keypoints`: what the data say, as JSON gave it, see `read_keypoints`; `parts`: a picture of `Part` labels.
    """

    name: str
    identity: str
    captions: tuple[str, ...]
    picture: Blob
    keypoints: object = None
    parts: Blob | None = None
    style: str = "photo"

    def open(self) -> Image.Image:
        """Upright RGB. Raises ImageError."""
        try:
            with Image.open(io.BytesIO(self.picture.read()), formats=FORMATS) as image:
                return open_image(image)
        except UnidentifiedImageError:
            raise ImageError(f"{self.name} is not a picture; expected one of {', '.join(FORMATS)}") from None
        except Image.DecompressionBombError:
            raise ImageError(f"{self.name} has far more pixels than are read; scale it down") from None
        except ImageError:
            raise
        except OSError as error:
            raise ImageError(f"{self.name} cannot be read ({error})") from error

    def open_parts(self) -> Image.Image | None:
        """Labels as grey values."""
        return Image.open(io.BytesIO(self.parts.read())) if self.parts else None


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """A picture that is left out, and why."""

    name: str
    reason: str


def read_keypoints(values: object) -> np.ndarray:
    """float32 [12, 3], x and y in [0, 1] of the picture and confidence, from 12 rows of 2 or 3 numbers.

    The third number is a confidence in [0, 1], or COCO's visibility if any is 2: 0 absent, 1 occluded, 2 visible.
    Raises PoseError.
    """
    points = pose_from_array(values).keypoints  # type: ignore[arg-type]
    third = points[:, 2]
    if third.min() < 0 or third.max() > 2:
        raise PoseError("keypoints' third number is a confidence in [0, 1] or a visibility of 0, 1 or 2")
    if third.max() > 1:
        points[:, 2] = CONFIDENCE[np.rint(third).astype(int)]
    return points
