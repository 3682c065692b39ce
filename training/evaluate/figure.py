"""The visual comparison: rows are people, columns the reference, the pose, and each model."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bolid_sdk.pose import draw_skeleton
from bolid_training.avatars.sheets import contact_sheet
from bolid_training.evaluate.exam import Exam


def chosen_rows(exam: Exam, count: int) -> list[int]:
    """Places of `count` trials, the pose classes in turn, so that none is left out; always the same ones.

    They are taken in the exam's order, not by how well they came out.
    """
    by_pose: dict[str, list[int]] = {}
    for index, trial in enumerate(exam.trials):
        by_pose.setdefault(trial.pose, []).append(index)
    turns = [by_pose[pose] for pose in sorted(by_pose)]
    in_turn = [places[turn] for turn in range(len(exam.trials)) for places in turns if turn < len(places)]
    return in_turn[:count]


def figure(exam: Exam, drawn: Mapping[str, NDArray[np.uint8]], rows: Sequence[int]) -> Image.Image:
    """`drawn`: each model's pictures [rows, H, W, 3] by the name that stands under its column."""
    cells, labels = [], []
    for place, index in enumerate(rows):
        reference = exam.references[index]
        skeleton = draw_skeleton(exam.skeletons[index], reference.shape[1], reference.shape[0])
        cells += [reference, skeleton, *(pictures[place] for pictures in drawn.values())]
        last = place == len(rows) - 1
        labels += ["reference", "pose", *drawn] if last else [exam.trials[index].prompt, *[""] * (1 + len(drawn))]
    return contact_sheet(cells, columns=2 + len(drawn), labels=labels)
