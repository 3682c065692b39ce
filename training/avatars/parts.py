"""What a pixel shows: the labels every face of every mesh carries."""

import enum


class Part(enum.IntEnum):
    """Semantic part of a face or pixel. The neck counts as FACE, a dress as UPPER."""

    BACKGROUND = 0
    FACE = 1
    HAIR = 2
    HAT = 3
    UPPER = 4
    LOWER = 5
    SHOES = 6
    ARMS = 7
    LEGS = 8
    PROP = 9  # furniture the person uses
