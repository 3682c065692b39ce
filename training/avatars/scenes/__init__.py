"""Places, seats, times of day and weathers."""

from .build import PLACES, build_scene, sample_place
from .scene import Place, Scene, SceneObject
from .seats import Seat, build_seat, sample_seat, seat_width
from .weather import precipitation

__all__ = [
    "PLACES",
    "Place",
    "Scene",
    "SceneObject",
    "Seat",
    "build_scene",
    "build_seat",
    "precipitation",
    "sample_place",
    "sample_seat",
    "seat_width",
]
