"""Rows of a comparison, from their names to the file and the figure."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bolid_sdk import Identity, Sampling
from bolid_sdk.errors import InputError
from bolid_training.evaluate import compare as comparison
from bolid_training.evaluate import drawn
from bolid_training.evaluate.cli import main
from bolid_training.evaluate.compare import Contestant, common, parse_contestant
from bolid_training.evaluate.figure import chosen_rows
from bolid_training.evaluate.protocol import Trial, trials


@pytest.fixture
def two_generators(copyist, monkeypatch):
    class Dyer(copyist):
        """A copyist who knows everybody, and paints people green when there is no pose."""

        def __init__(self):
            super().__init__()
            self.refused = True

        def batch(self, requests, seed, **options):
            copies = super().batch(requests, seed)
            if "pose" not in options:
                return copies
            return [SimpleNamespace(image=np.asarray(copy.image) * np.uint8([0, 1, 0])) for copy in copies]

    made = {None: copyist, Path("dyer"): Dyer}
    monkeypatch.setattr(comparison, "Generator", lambda bundle, backend: made[bundle]())


def test_rows_of_a_comparison_are_paired_and_stand_between_the_same_ceilings_and_floors(
    photographs, two_generators, judges
):
    people = photographs(size=64)
    rows = [
        Contestant(name="copyist", bundle=None),
        Contestant(name="dyer", bundle=Path("dyer"), options={"pose": None, "sampling": Sampling(steps=2)}),
    ]
    found, image = comparison.compare(
        rows, judges, people, trials(people, 8, pictures=2), seed=0, split="test", shown=3
    )
    assert [row["model"] for row in found["rows"]] == ["copyist", "dyer"]
    # the photograph that one of them refused, in both rounds, is asked of nobody
    assert (found["setup"]["pictures"], found["setup"]["references_refused"]) == (14, 2)
    first, second = found["rows"]
    for name in first["metrics"].keys() - {"clip_score"}:
        assert first["metrics"][name] == found["ceilings"][name]
    assert (first["pose_input"], second["pose_input"], second["steps"]) == (True, False, 2)
    assert "minus_first_row" not in first
    change = second["minus_first_row"]["clothes_colour_distance"]
    assert change["value"] == pytest.approx(second["metrics"]["clothes_colour_distance"]["value"], abs=1e-4)
    assert change["ci95"][0] > 0.3
    assert second["minus_first_row"].keys() == second["metrics"].keys()
    assert second["minus_first_row"]["fd_judge_clip"]["ci95"][0] > 0
    assert {"rows", "ceilings", "floors", "autoencoded", "by_pose", "setup"} == found.keys()
    assert found["by_pose"].keys() == {"ceilings", "autoencoded"}
    assert found["by_pose"]["ceilings"].keys() == first["by_pose"].keys()
    assert {"value", "quartiles"} == first["seconds_per_image"].keys()
    assert image.size == (4 * 66, 3 * (64 + 2 + 12))


def test_a_comparison_is_written_as_json_with_its_figure(photographs, two_generators, judges, tmp_path, monkeypatch):
    monkeypatch.setattr("bolid_training.data.load_people", lambda data, split: photographs(size=64))
    monkeypatch.setattr("bolid_training.judges.panel.load_judges", lambda folder, keep: judges)
    out, figure = tmp_path / "results" / "comparison.json", tmp_path / "images" / "comparison.png"
    arguments = ["compare", "a=embedded", "b=dyer@pose=none", "--people", "4", "-o", str(out), "--figure", str(figure)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert [row["model"] for row in json.loads(out.read_text())["rows"]] == ["a", "b"]
    assert Image.open(figure).width == 4 * 66


def test_a_row_is_measured_anew_beside_the_others(photographs, two_generators, judges, tmp_path, monkeypatch):
    monkeypatch.setattr("bolid_training.data.load_people", lambda data, split: photographs(size=64))
    monkeypatch.setattr("bolid_training.judges.panel.load_judges", lambda folder, keep: judges)
    out = tmp_path / "comparison.json"

    def compare(*arguments, people="4"):
        return CliRunner().invoke(main, ["compare", *arguments, "--people", people, "-o", str(out)])

    assert compare("a=embedded", "b=dyer@pose=none").exit_code == 0
    assert compare("a=embedded@pose=none", "--beside", str(out)).exit_code == 0
    rows = json.loads(out.read_text())["rows"]
    assert [(row["model"], row["pose_input"]) for row in rows] == [("a", False), ("b", False)]
    before = out.read_text()
    monkeypatch.setattr(comparison, "draw", None)  # other people are refused before anything is drawn of them
    refused = compare("a=embedded", "--beside", str(out), people="6")
    assert (refused.exit_code, out.read_text()) == (2, before)
    assert "pictures, people" in refused.output


def test_a_figure_shows_the_models_that_are_named(photographs, two_generators, judges, tmp_path, monkeypatch):
    monkeypatch.setattr("bolid_training.data.load_people", lambda data, split: photographs(size=64))
    monkeypatch.setattr("bolid_training.judges.panel.load_judges", lambda folder, keep: judges)
    figure = tmp_path / "comparison.png"
    arguments = ["compare", "a=embedded", "b=dyer@pose=none", "--people", "4", "--figure", str(figure), "--columns"]
    result = CliRunner().invoke(main, [*arguments, "b"])
    assert result.exit_code == 0, result.output
    assert Image.open(figure).width == 3 * 66
    result = CliRunner().invoke(main, [*arguments, "b,c"])
    assert (result.exit_code, "the figure cannot show c; the rows are a, b" in result.output) == (2, True)


def test_what_was_drawn_before_is_not_drawn_again(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        drawn, "generate", lambda generator, accepted, seed, **options: asked.append(options) or np.eye(4, dtype="u1")
    )

    def draw(bundle="a", prompt="a man", keypoint=0.5, seed=0, folder=tmp_path, **options):
        generator = SimpleNamespace(bundle=SimpleNamespace(digest=bundle), backend="library 1.0")
        identity = Identity(tokens=np.zeros((2, 3)), keypoints=np.full((12, 3), keypoint), aspect=1.0, digest="")
        trial = Trial(index=0, other=1, round=0, identity=0, pose="standing", place="park", prompt=prompt)
        return drawn.draw(folder, generator, [(trial, identity)], seed, **options)

    draw(sampling=Sampling(steps=4))
    np.testing.assert_array_equal(draw(sampling=Sampling(steps=4)), np.eye(4))
    assert len(asked) == 1
    for other in ({"bundle": "b"}, {"prompt": "a woman"}, {"keypoint": 0.4}, {"seed": 1}, {"pose": None}):
        draw(**{"sampling": Sampling(steps=4)} | other)
        draw(**{"sampling": Sampling(steps=4)} | other)
    assert len(asked) == 6
    draw(folder=None, sampling=Sampling(steps=4))
    assert len(asked) == 7


def test_rows_are_named_bundles_with_options():
    assert parse_contestant("bolid=engines/bolid") == Contestant(name="bolid", bundle=Path("engines/bolid"))
    assert parse_contestant("base=embedded@steps=25@guidance=3@pose=none") == Contestant(
        name="base", bundle=None, options={"pose": None, "sampling": Sampling(steps=25, guidance=3.0)}
    )
    assert parse_contestant("two=embedded@references=2").references == 2
    best = parse_contestant("best=embedded@best_of=4@pose_scale=1.4")
    assert best.options == {"best_of": 4, "pose_scale": 1.4}
    for text in ("bolid", "=x", "a=b@pose=anna", "a=b@colour=red", "a=b@steps=many", "a=b@references=0"):
        with pytest.raises(InputError, match=r"expected|many"):
            parse_contestant(text)


def test_what_not_everybody_accepts_is_asked_of_nobody():
    one, two = [("a", 1), ("b", 2), ("c", 3)], [("b", 20), ("c", 30)]
    assert common([one, two]) == [[("b", 2), ("c", 3)], [("b", 20), ("c", 30)]]
    with pytest.raises(InputError, match="1 references"):
        common([one, [("c", 3)]])


def test_the_figures_people_are_of_all_poses_in_turn():
    poses = ["sitting", "sitting", "lying", "sitting", "walking"]
    asked = SimpleNamespace(trials=[SimpleNamespace(pose=pose) for pose in poses])
    assert chosen_rows(asked, 4) == [2, 0, 4, 1]
    assert chosen_rows(asked, 9) == [2, 0, 4, 1, 3]
