"""Arrays that are computed once and kept."""

import subprocess
import sys

import numpy as np

from bolid_training.data import cached


def test_two_runs_that_compute_one_array_do_not_disturb_each_other(tmp_path):
    """The other one begins and ends while this one computes."""
    file = tmp_path / "cache" / "array.npy"
    other = (
        "import sys, pathlib, numpy as np; from bolid_training.data import cached;"
        "cached(pathlib.Path(sys.argv[1]), lambda piece: np.full((64, 1), piece.start), 128)"
    )

    def compute(piece):
        if piece.start:
            subprocess.run([sys.executable, "-c", other, file], check=True)
        return np.full((64, 1), piece.start)

    found = cached(file, compute, 128)
    np.testing.assert_array_equal(found[:, 0], np.repeat([0, 64], 64))
    assert [path.name for path in file.parent.iterdir()] == ["array.npy"]
