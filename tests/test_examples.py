"""Every example runs as it is shown and leaves pictures behind."""

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


def test_there_are_examples():
    assert EXAMPLES


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_makes_pictures(example, tmp_path):
    result = subprocess.run([sys.executable, example], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    pictures = sorted(tmp_path.glob(f"{example.stem}*.png"))
    assert pictures
    for picture in pictures:
        with Image.open(picture) as image:
            assert min(image.size) >= 64
            darkest, brightest = image.convert("L").getextrema()
            assert brightest - darkest > 50, "a picture of one colour is no picture"
