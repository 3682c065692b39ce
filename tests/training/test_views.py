"""Views cut pictures and keypoints alike."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bolid_training.model.pose_estimator import FLIP
from bolid_training.views import Views, upright

PLACES = st.floats(0.3, 0.7)


def view(x, y, side, angle, mirror):
    return Views(
        centre=torch.tensor([[x, y]]),
        side=torch.tensor([side]),
        angle=torch.tensor([angle]),
        mirror=torch.tensor([mirror]),
    )


@settings(max_examples=40, deadline=None)
@given(PLACES, PLACES, st.floats(0.5, 2), st.floats(-3, 3), st.booleans(), PLACES, PLACES)
def test_a_keypoint_is_where_its_pixel_is(x, y, side, angle, mirror, dot_x, dot_y):
    rows, columns = np.mgrid[:128, :128] / 128
    blob = np.exp(-((columns + 1 / 256 - dot_x) ** 2 + (rows + 1 / 256 - dot_y) ** 2) / 0.001)
    views = view(x, y, side, angle, mirror)
    keypoints = torch.zeros(1, 1, 12, 3)
    keypoints[:, :, 3] = torch.tensor([dot_x, dot_y, 2.0])
    located = views.locate(keypoints)[0, 0, FLIP[3] if mirror else 3]
    if located[2] == 0:
        assert not ((located[:2] > 0) & (located[:2] < 1)).all()
        return
    cut = views.cut(torch.from_numpy(blob).float()[None, None], 96)[0, 0]
    if cut.max() < 0.9:  # on the view's border
        return
    row, column = divmod(int(cut.argmax()), 96)
    assert abs((column + 0.5) / 96 - located[0]) < 0.015
    assert abs((row + 0.5) / 96 - located[1]) < 0.015


def test_the_whole_picture_is_itself():
    picture = torch.rand(2, 3, 32, 32)
    views = upright(torch.full((2, 2), 0.5), torch.ones(2))
    assert (views.cut(picture, 32) - picture).abs().max() < 1e-5
