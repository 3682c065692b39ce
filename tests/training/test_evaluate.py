"""The metrics against closed forms, and the protocol's promises."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bolid_sdk import Identity, Sampling
from bolid_sdk.bundle import open_bundle
from bolid_sdk.errors import InputError
from bolid_training.avatars.parts import Part
from bolid_training.data import People
from bolid_training.evaluate import compare as comparison
from bolid_training.evaluate import drawn
from bolid_training.evaluate.cli import main
from bolid_training.evaluate.compare import Contestant, common, parse_contestant
from bolid_training.evaluate.exam import Exam, Seen, look, look_at_references, scores
from bolid_training.evaluate.figure import chosen_rows
from bolid_training.evaluate.gate import compare_bundles
from bolid_training.evaluate.intervals import distance_difference, distance_summary, summary
from bolid_training.evaluate.metrics import (
    clothes_colours,
    colour_distance,
    cosines,
    found_first,
    frechet_distance,
    keypoint_errors,
    pck,
)
from bolid_training.evaluate.pictures import identify
from bolid_training.evaluate.protocol import Trial, further_photographs, trials, true_prompt
from bolid_training.evaluate.run import compare, evaluate
from bolid_training.model.pose_estimator import FLIP


def keypoints(count=3):
    points = np.random.default_rng(0).uniform(0.2, 0.8, (count, 12, 3)).astype(np.float32)
    points[..., 2] = 2
    points[:, 0, :2], points[:, 1, :2] = (0.1, 0.1), (0.5, 0.9)  # the person's box is 0.8 high
    return points


def test_keypoint_errors_are_in_units_of_the_person():
    truth = keypoints()
    found = truth.copy()
    found[..., 0] += 0.04
    assert keypoint_errors(found, truth) == pytest.approx(0.05, abs=1e-6)


def test_pck_counts_only_points_inside_the_picture():
    truth = keypoints(1)
    found = truth.copy()
    found[0, 2:5, 1] += 0.2
    assert pck(keypoint_errors(found, truth), 0.1) == pytest.approx(9 / 12)
    truth[0, 2:5, 2] = 0
    assert pck(keypoint_errors(found, truth), 0.1) == 1


def test_clothes_colour_distance_is_euclidean_and_ignores_missing_garments():
    parts = np.zeros((32, 32), np.uint8)
    parts[:16] = Part.UPPER
    red, blue = np.zeros((2, 32, 32, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    colours = [clothes_colours(image, parts)[None] for image in (red, blue)]
    assert np.isnan(colours[0][0, 1]).all()
    assert colour_distance(*colours) == pytest.approx(2**0.5)


def test_summary_covers_the_mean_and_leaves_out_nan():
    values = np.random.default_rng(1).normal(0.5, 0.1, 400)
    found = summary([*values, np.nan])
    assert found["value"] == pytest.approx(values.mean(), abs=1e-4)
    low, high = found["ci95"]
    assert low < found["value"] < high
    assert high - low == pytest.approx(4 * 0.1 / 400**0.5, rel=0.15)


def test_summary_draws_people_because_pictures_of_one_are_not_independent():
    people = np.repeat(np.arange(100), 4)
    each = np.random.default_rng(1).normal(0.5, 0.1, 100)
    values = each[people]
    low, high = summary(values, people)["ci95"]
    assert high - low == pytest.approx(4 * each.std() / 100**0.5, rel=0.15)
    narrow = summary(values)["ci95"]
    assert narrow[1] - narrow[0] == pytest.approx((high - low) / 2, rel=0.15)


def test_summary_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="none of 2 values"):
        summary([np.nan, np.nan])


def test_cosines_of_rows():
    first, second = np.array([[1.0, 0], [0, 2], [3, 3]]), np.array([[5.0, 0], [1, 0], [1, 0]])
    assert cosines(first, second) == pytest.approx([1, 0, 0.5**0.5])


def test_found_first_is_asked_among_so_many_people():
    gallery = np.eye(5)
    queries = gallery[[0, 1, 4, 3, 2]]  # the third and the fifth are taken for each other
    assert found_first(queries, gallery, 100) == pytest.approx([1, 1, 0, 1, 0])
    assert found_first(queries, gallery, 5).mean() == pytest.approx(0.6)
    # galleries (0, 1), (2, 3), (3, 4): nobody there is like the mistaken ones, and the first of equals is taken
    assert found_first(queries, gallery, 2) == pytest.approx([1, 1, 1, 1, 0])


def test_frechet_distance_of_gaussians_with_known_moments():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((20_000, 3))
    first, second = noise, 2 * rng.standard_normal((20_000, 3)) + [1, 0, 0]
    # |mu|^2 + sum (s_p - s_q)^2 for equal axes
    assert frechet_distance(first, second) == pytest.approx(1 + 3 * (1 - 2) ** 2, rel=0.03)
    assert frechet_distance(noise, noise) == pytest.approx(0, abs=1e-6)


def test_the_interval_of_a_frechet_distance_covers_it_in_spite_of_the_bias():
    rng = np.random.default_rng(0)
    found = distance_summary(rng.standard_normal((150, 8)), rng.standard_normal((300, 8)) + 0.5, np.arange(150))
    low, high = found["ci95"]
    assert low < found["value"] < high
    assert low < 8 * 0.25 < high


def test_two_frechet_distances_are_compared_on_the_same_draws():
    rng = np.random.default_rng(0)
    real, first = rng.standard_normal((300, 8)) + 0.5, rng.standard_normal((150, 8))
    # three quarters as far, and otherwise the same pictures
    found = distance_difference(first + 0.125, first, real, np.arange(150))
    low, high = found["ci95"]
    assert low < 8 * (0.375**2 - 0.5**2) < high < 0
    alone = distance_summary(first, real, np.arange(150))["ci95"]
    assert high - low < (alone[1] - alone[0]) / 2
    assert distance_difference(first, first, real, np.arange(150)) == {"value": 0.0, "ci95": [0.0, 0.0]}


def photographs(count=40, size=8, time="day"):
    """Noise that stands for pictures of people, four each, of whom some are drawn as cartoons."""
    places = ("beach", "desert")
    known = {"pose": "walking", "time": time, "captions": []}
    metadata = [{"style": "photo" if i % 3 else "cartoon", "scene": places[i % 2], **known} for i in range(count)]
    rng = np.random.default_rng(0)
    parts = np.full((count, size, size), Part.UPPER, np.uint8)
    return People(
        images=rng.integers(256, size=(count, size, size, 3), dtype=np.uint8),
        parts=parts,
        keypoints=keypoints(count),
        identity=np.arange(count, dtype=np.int32) // 4,
        metadata=metadata,
    )


def exam(count=20):
    """Trials of people whose embeddings are unit vectors of their own."""
    group = photographs(count)
    one_each = trials(group, count)
    embeddings = np.eye(len(one_each), dtype=np.float32)
    truth = keypoints(len(one_each))
    return Exam(
        trials=one_each,
        references=group.images[: len(one_each)],
        parts=group.parts[: len(one_each)],
        truth=truth,
        skeletons=truth,
        gallery=embeddings,
        prompts=embeddings,
        true_prompts=embeddings,
        real=np.random.default_rng(0).standard_normal((30, len(one_each))),
    )


def test_a_perfect_picture_is_the_ceiling_and_somebody_else_is_not_found():
    asked = exam()
    count = len(asked.trials)
    colours = np.random.default_rng(0).random((count, 2, 3))
    perfect = Seen(keypoints=asked.truth, identity=asked.gallery, clip=asked.prompts, colours=colours)
    found = compare(asked, perfect, perfect, perfect)
    assert found["metrics"] == found["ceilings"] == found["autoencoded"]
    for name in ("id_similarity", "id_top1", "pose_pck10", "pose_pck05", "skeleton_pck10", "clip_score"):
        assert found["metrics"][name]["value"] == 1
        assert found["floors"][name]["value"] < 0.3
    assert (
        found["metrics"]["clothes_colour_distance"]["value"] == 0 < found["floors"]["clothes_colour_distance"]["value"]
    )
    assert "fd_judge_clip" not in found["floors"]
    assert found["by_pose"]["id_similarity"]["walking"]["value"] == 1


def test_somebody_seen_from_behind_keeps_the_pose_but_not_its_sides():
    asked = exam()
    colours = np.zeros((len(asked.trials), 2, 3))
    seen = Seen(keypoints=asked.truth[:, FLIP], identity=asked.gallery, clip=asked.prompts, colours=colours)
    found = scores(asked, seen, seen, asked.prompts)
    assert found["pose_pck10"].mean() < 0.3
    assert (found["pose_pck10_unsided"] == 1).all()


def test_a_reference_is_looked_at_once_however_many_trials_it_has(judges):
    people = photographs(size=64)
    chosen = trials(people, 8, pictures=5)
    indices = [trial.index for trial in chosen]
    assert len(set(indices)) < len(indices)
    asked = replace(exam(8), trials=chosen, parts=people.parts[indices])
    looked = []

    class Counting:
        keypoints, clip = judges.keypoints, judges.clip

        def people(self, images, keypoints):
            looked.append(len(images))
            return judges.people(images, keypoints)

    once, each = (see(Counting(), asked, people.images[indices]) for see in (look_at_references, look))
    assert looked == [len(set(indices)), len(indices)]
    for name in ("keypoints", "identity", "clip", "colours"):
        np.testing.assert_allclose(getattr(once, name), getattr(each, name), atol=1e-4)


def test_trials_take_one_photograph_a_person_and_another_place():
    people = photographs()
    chosen = trials(people, 8)
    assert len({trial.identity for trial in chosen}) == len(chosen) == 8
    assert all(people.photos[trial.index] for trial in chosen)
    assert all(trial.place != people.metadata[trial.index]["scene"] for trial in chosen)
    assert {trial.prompt for trial in chosen} == {"walking on a beach", "walking in a desert"}
    assert chosen == trials(people, 8)


def test_trials_ask_for_the_light_of_the_photographs():
    people = photographs(time="fog")
    assert {trial.prompt[-10:] for trial in trials(people, 8)} == {"in the fog"}
    assert true_prompt(people, 0) == "walking on a beach in the fog"


def test_more_pictures_a_person_are_rounds_of_other_references_and_prompts():
    people = photographs()
    chosen = trials(people, 8, pictures=3)
    assert [trial.round for trial in chosen] == [0] * 8 + [1] * 8 + [2] * 8
    assert chosen[:8] == trials(people, 8)
    assert [trial.identity for trial in chosen] == 3 * [trial.identity for trial in chosen[:8]]
    assert all(people.photos[trial.index] for trial in chosen)
    several = [trial.identity for trial in chosen if people.photos[people.identity == trial.identity].sum() > 2]
    assert several
    assert all(len({trial.index for trial in chosen if trial.identity == identity}) > 1 for identity in several)


def test_identity_is_compared_with_another_photograph_of_the_person():
    people = photographs()
    chosen = trials(people, 8, pictures=3)
    assert not {trial.other for trial in chosen} & {trial.index for trial in chosen}
    assert all(people.identity[trial.other] == trial.identity for trial in chosen)
    assert all(people.photos[trial.other] for trial in chosen)


def test_further_references_are_neither_the_first_nor_the_one_it_is_compared_with():
    people = photographs()
    shown = []

    class Viewer:
        def identify(self, images):
            shown.append(images)
            return SimpleNamespace(images=images)

    chosen = trials(people, 8)
    identify(Viewer(), people, chosen, references=3)
    sets = [images for images in shown if isinstance(images, list)]
    photos = [int(people.photos[people.identity == trial.identity].sum()) for trial in chosen]
    assert sorted(len(images) for images in sets) == sorted(min(3, count - 1) for count in photos if count > 2)
    for trial in chosen:
        more = further_photographs(people, trial)
        assert not {trial.index, trial.other} & set(more)
        assert all(people.photos[more])
        assert all(people.identity[more] == trial.identity)


class Copyist:
    """A generator that draws its reference again, and knows nobody in the first picture it is shown."""

    def __init__(self):
        self.bundle, self.refused = open_bundle(None), False

    def identify(self, image):
        if not self.refused:
            self.refused = True
            raise InputError("nobody")
        return SimpleNamespace(image=image, keypoints=keypoints(1)[0])

    backend = "none"

    def batch(self, requests, seed, **options):
        return [SimpleNamespace(image=identity.image) for identity, _ in requests]

    def __call__(self, identity, prompt, seed, **options):
        return self.batch([(identity, prompt)], seed, **options)[0]


def test_evaluation_of_a_copyist_gives_the_reference_its_own_scores(judges):
    people = photographs(size=64)
    chosen = trials(people, 8, pictures=2)
    found = evaluate(Copyist(), judges, people, chosen)
    assert (found["pictures"], found["people"], found["references_refused"]) == (14, 7, 2)
    assert found["compared_with_the_reference_itself"] == 0
    assert found["metrics"].keys() == found["ceilings"].keys() == found["autoencoded"].keys()
    for name in found["metrics"].keys() - {"clip_score"}:
        assert found["metrics"][name] == found["ceilings"][name]
    assert found["metrics"]["clothes_colour_distance"]["value"] == 0
    assert found["autoencoded"]["clothes_colour_distance"]["value"] > 0


def test_evaluation_without_an_encoder_leaves_reconstructions_out(judges, monkeypatch):
    monkeypatch.setattr("bolid_training.evaluate.run.reconstruct", lambda generator, images: None)
    people = photographs(size=64)
    assert "autoencoded" not in evaluate(Copyist(), judges, people, trials(people, 8))


class Dyer(Copyist):
    """A copyist who knows everybody, and paints people green when there is no pose."""

    def __init__(self):
        super().__init__()
        self.refused = True

    def batch(self, requests, seed, **options):
        copies = super().batch(requests, seed)
        if "pose" not in options:
            return copies
        return [SimpleNamespace(image=np.asarray(copy.image) * np.uint8([0, 1, 0])) for copy in copies]


@pytest.fixture
def two_generators(monkeypatch):
    made = {None: Copyist, Path("dyer"): Dyer}
    monkeypatch.setattr(comparison, "Generator", lambda bundle, backend: made[bundle]())


def test_rows_of_a_comparison_are_paired_and_stand_between_the_same_ceilings_and_floors(two_generators, judges):
    people = photographs(size=64)
    rows = [
        Contestant(name="copyist", bundle=None),
        Contestant(name="dyer", bundle=Path("dyer"), options={"pose": None, "sampling": Sampling(steps=2)}),
    ]
    found, image = comparison.compare(rows, judges, people, trials(people, 8, pictures=2), seed=0, shown=3)
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


def test_a_comparison_is_written_as_json_with_its_figure(two_generators, judges, tmp_path, monkeypatch):
    monkeypatch.setattr("bolid_training.data.load_people", lambda data, split: photographs(size=64))
    monkeypatch.setattr("bolid_training.judges.panel.load_judges", lambda folder: judges)
    out, figure = tmp_path / "results" / "comparison.json", tmp_path / "images" / "comparison.png"
    arguments = ["compare", "a=embedded", "b=dyer@pose=none", "--people", "4", "-o", str(out), "--figure", str(figure)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert [row["model"] for row in json.loads(out.read_text())["rows"]] == ["a", "b"]
    assert Image.open(figure).width == 4 * 66


def test_a_figure_shows_the_models_that_are_named(two_generators, judges, tmp_path, monkeypatch):
    monkeypatch.setattr("bolid_training.data.load_people", lambda data, split: photographs(size=64))
    monkeypatch.setattr("bolid_training.judges.panel.load_judges", lambda folder: judges)
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


def test_a_bundle_is_as_good_as_itself(judges):
    people = photographs(size=64)
    found = compare_bundles(Copyist(), Copyist(), judges, people, trials(people, 8, pictures=2))
    # each of the two copyists refuses the first photograph that it is shown: one of two trials, and one of one
    assert (found["pictures"], found["references_refused"]) == (13, 3)
    assert found["passed"]
    assert all(metric["difference"]["value"] == 0 for metric in found["metrics"].values())
