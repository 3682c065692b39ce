"""Contact sheets: where pictures and texts go."""

import numpy as np
import pytest

from bolid_training.avatars.sheets import LABEL_HEIGHT, contact_sheet

WHITE = np.full((20, 40, 3), 255, np.uint8)


def written(labels):
    """Which columns of the sheet have text: four cells of 42 pixels in two rows of two."""
    sheet = np.asarray(contact_sheet([WHITE] * 4, columns=2, labels=labels).convert("L"))
    assert sheet.shape == (2 * (22 + LABEL_HEIGHT), 2 * 42)
    dark = sheet[: 22 + LABEL_HEIGHT].min(0) < 128
    return dark[:42].any(), dark[42:].any()


def test_a_label_runs_on_under_cells_without_one():
    long = "walking in a park at night"
    assert written([long, "", "", ""]) == (True, True)
    assert written(["", long, "", ""]) == (False, True)
    assert written(["", "", long, ""]) == (False, False)


def test_a_label_ends_where_the_next_begins():
    both, alone = (
        np.asarray(contact_sheet([WHITE] * 2, columns=2, labels=labels).convert("L"))
        for labels in (["walking in a park", "x"], ["", "x"])
    )
    np.testing.assert_array_equal(both[:, 42:], alone[:, 42:])


def test_labels_and_pictures_have_to_match():
    with pytest.raises(ValueError, match="4 pictures but 1 labels"):
        contact_sheet([WHITE] * 4, columns=2, labels=["x"])
