"""Several pictures drawn, one kept."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from bolid_sdk import generator as module
from bolid_sdk.best_of import STRIDE, agreement, candidate_seeds, pose_agreements
from bolid_sdk.cli import infer
from bolid_sdk.errors import InputError
from bolid_sdk.generator import Generator
from bolid_sdk.pose import Pose, estimate_pose
from bolid_sdk.request import MAX_SEED

PROMPT = "sitting on a red sofa"
SHARE = st.floats(0, 1, width=32)
POSES = arrays(np.float32, (12, 3), elements=SHARE)


@pytest.fixture(scope="module")
def person(generator, reference):
    return generator.identify(reference)


@pytest.fixture
def darkest_wins(monkeypatch):
    """Instead of the estimator, which sees the tiny model's noise alike."""

    def darkness(estimator, images, poses, size):
        return [1 - float(np.asarray(image).mean()) / 255 for image in images]

    monkeypatch.setattr(module, "pose_agreements", darkness)


@given(asked=POSES, found=POSES, aspect=st.floats(0.25, 4))
def test_agreement_is_a_share_and_whole_for_the_pose_itself(asked, found, aspect):
    assert 0 <= agreement(asked, found, aspect) <= 1
    surely = np.concatenate([asked[:, :2], np.ones((12, 1), np.float32)], 1)
    assert agreement(surely, surely, aspect) == pytest.approx(1)


@given(asked=POSES, confidence=SHARE, number=st.integers(0, 11))
def test_a_keypoint_that_moves_away_or_is_doubtful_agrees_less(asked, confidence, number):
    asked = np.concatenate([asked[:, :2], np.ones((12, 1), np.float32)], 1)
    moved, doubted = asked.copy(), asked.copy()
    moved[number, 0] += 0.5
    doubted[number, 2] = confidence
    assert agreement(asked, moved) < 1
    assert agreement(asked, doubted) == pytest.approx((11 + confidence) / 12, abs=1e-5)


def test_keypoints_that_are_not_drawn_for_the_guider_do_not_count():
    asked = np.full((12, 3), 0.5, np.float32)
    asked[:6, 1] = 0.1
    found = asked.copy()
    asked[0, 2], found[0, :2] = 0.0, 0.9
    assert agreement(asked, found) == pytest.approx(0.5)
    asked[:, 2] = 0
    assert agreement(asked, found) == 0


def test_in_a_wide_picture_a_step_aside_is_farther():
    asked = np.ones((12, 3), np.float32) * (0.5, 0.2, 1)
    asked[6:, 1] = 0.8
    aside = asked + np.float32((0.05, 0, 0))
    assert agreement(asked, aside, 3.0) < agreement(asked, aside, 1.0) < 1


@given(seeds=st.lists(st.integers(0, MAX_SEED), min_size=1, max_size=5), count=st.integers(1, 16))
def test_candidates_have_seeds_of_their_own_and_the_first_is_the_pictures(seeds, count):
    drawn = np.array(candidate_seeds(seeds, count, MAX_SEED + 1), object).reshape(len(seeds), count)
    assert drawn[:, 0].tolist() == seeds
    assert all(len(set(row)) == count and 0 <= min(row) <= max(row) <= MAX_SEED for row in drawn.tolist())


def test_neighbours_in_a_batch_share_no_candidate():
    assert len(set(candidate_seeds(range(1024), 8, MAX_SEED + 1))) == 1024 * 8


def test_one_run_of_the_estimator_sees_what_it_sees_in_each_picture(generator, picture):
    sizes, estimator = generator.bundle.manifest.sizes, generator._graphs["pose_estimator"]
    size = (sizes.pose_height, sizes.pose_width)
    images = [picture(seed, (64, 64)) for seed in range(3)]
    seen = estimate_pose(estimator, images[0], size).keypoints
    poses = [Pose(keypoints=np.concatenate([seen[:, :2], np.ones((12, 1), np.float32)], 1))] * 3
    together = pose_agreements(estimator, images, poses, size)
    alone = [pose_agreements(estimator, [image], [poses[0]], size)[0] for image in images]
    assert together == pytest.approx(alone)
    assert all(0 < share < 1 for share in together)  # it is half sure of these
    assert pose_agreements(estimator, images, [None] * 3, size) == [None] * 3


def test_the_best_candidate_is_kept_and_its_seed_draws_it_again(generator, person, darkest_wins):
    seeds = [7 + STRIDE * number for number in range(5)]
    alone = [generator(person, PROMPT, seed=seed) for seed in seeds]
    darkest = min(alone, key=lambda result: np.asarray(result.image).mean())
    assert darkest.seed != 7
    best = generator(person, PROMPT, seed=7, best_of=5)
    assert best.seed == darkest.seed
    np.testing.assert_array_equal(np.asarray(best.image), np.asarray(darkest.image))
    assert best.pose_agreement == pytest.approx(1 - np.asarray(best.image).mean() / 255)
    assert alone[0].pose_agreement is None


def test_a_batch_chooses_for_each_picture(tiny_bundle, person, darkest_wins):
    requests = [(person, PROMPT), (person, "in the snow"), (person, "at night")]
    for max_batch in (3, 4, 8, 9):
        generator = Generator(tiny_bundle.path, threads=1, max_batch=max_batch)
        together = generator.batch(requests, seed=[3, 4, 9], best_of=3)
        for (who, prompt), seed, result in zip(requests, (3, 4, 9), together, strict=True):
            alone = generator(who, prompt, seed=seed, best_of=3)
            assert (result.seed, result.prompt) == (alone.seed, prompt)


def test_a_stream_shows_one_candidate_and_ends_with_the_best(generator, person, darkest_wins):
    steps = list(generator.stream(person, PROMPT, seed=7, best_of=3))
    assert isinstance(steps[0].preview(), Image.Image)
    assert steps[-1].result().seed == generator(person, PROMPT, seed=7, best_of=3).seed


def test_the_estimator_itself_is_asked(generator, person):
    result = generator(person, PROMPT, seed=7, best_of=2)
    assert 0 < result.pose_agreement <= 1
    assert json.loads(json.dumps(result.to_dict()))["pose_agreement"] == pytest.approx(result.pose_agreement, abs=1e-4)


@pytest.mark.parametrize("best_of", [0, -1, 9, True, 1.5, "4", None])
def test_an_unusable_number_says_what_is_usable(generator, person, best_of):
    with pytest.raises(InputError, match=r"best_of=.* expected 1 to 8"):
        generator(person, PROMPT, best_of=best_of)


def test_without_a_pose_there_is_nothing_to_choose_by(generator, person):
    with pytest.raises(InputError, match="best_of=2 chooses by the pose"):
        generator(person, PROMPT, pose=None, best_of=2)


def test_the_command_line_keeps_the_best_too(tiny_bundle, reference, tmp_path, darkest_wins):
    words = [str(reference), PROMPT, "--bundle", str(tiny_bundle.path), "--seed", "7", "--json", "-o"]
    found = CliRunner().invoke(infer, [*words, str(tmp_path / "a.png"), "--best-of", "5"])
    assert found.exit_code == 0, found.output
    (story,) = json.loads(found.stdout)["results"]
    assert story["seed"] % STRIDE == 7
    assert story["pose_agreement"] > 0
    refused = CliRunner().invoke(infer, [*words, str(tmp_path / "b.png"), "--best-of", "0"])
    assert refused.exit_code == 2
    assert "best_of=0" in refused.stderr
