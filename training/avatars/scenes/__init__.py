"""Places, seats, times of day and weathers."""

from bolid_training.avatars.scenes.build import PLACES, build_scene, sample_place
from bolid_training.avatars.scenes.scene import Place, Scene, SceneObject
from bolid_training.avatars.scenes.seats import Seat, build_seat, sample_seat, seat_width
from bolid_training.avatars.scenes.weather import precipitation

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
