"""From the name of a place to its meshes, light and sky."""

from __future__ import annotations

import numpy as np

from bolid_training.avatars.scenes.builder import Builder
from bolid_training.avatars.scenes.indoor import INDOOR
from bolid_training.avatars.scenes.outdoor import OUTDOOR
from bolid_training.avatars.scenes.scene import Place, Scene, Stage
from bolid_training.avatars.scenes.weather import indoor_light, outdoor_light

PLACES: dict[str, Place] = {place.name: place for place in (*INDOOR, *OUTDOOR)}


def sample_place(rng: np.random.Generator) -> tuple[Place, str]:
    """A place and a time of day or weather that it can have."""
    place = PLACES[str(rng.choice(list(PLACES)))]
    return place, str(rng.choice(list(place.times), p=list(place.times.values())))


def build_scene(place: Place, time: str, clearance: float, rng: np.random.Generator) -> Scene:
    """A place around a person who takes a disc of `clearance` metres at the origin; the camera looks along +y."""
    builder = Builder(rng)
    objects = tuple(place.build(builder, Stage(clearance=clearance, time=time)))
    if place.indoor:
        light, background = indoor_light(time, "#e8e4da", rng)
    else:
        light, background = outdoor_light(time, place.haze, rng)
    return Scene(
        place=place.name,
        time=time,
        indoor=place.indoor,
        meshes=builder.meshes(),
        light=light,
        background=background,
        objects=objects,
    )
