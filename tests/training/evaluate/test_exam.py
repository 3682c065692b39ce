"""What judges say of pictures whose scores are known beforehand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from bolid_sdk.errors import InputError
from bolid_training.evaluate.exam import Exam, Seen, look, look_at_references, scores, set_exam
from bolid_training.evaluate.gate import compare_bundles
from bolid_training.evaluate.protocol import trials
from bolid_training.evaluate.run import compare, evaluate
from bolid_training.model.pose_estimator import FLIP


@pytest.fixture
def exam(photographs, keypoints):
    def made(count=20):
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

    return made


def test_a_perfect_picture_is_the_ceiling_and_somebody_else_is_not_found(exam):
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


def test_somebody_seen_from_behind_keeps_the_pose_but_not_its_sides(exam):
    asked = exam()
    colours = np.zeros((len(asked.trials), 2, 3))
    seen = Seen(keypoints=asked.truth[:, FLIP], identity=asked.gallery, clip=asked.prompts, colours=colours)
    found = scores(asked, seen, seen, asked.prompts)
    assert found["pose_pck10"].mean() < 0.3
    assert (found["pose_pck10_unsided"] == 1).all()


def test_a_reference_is_looked_at_once_however_many_trials_it_has(exam, photographs, judges):
    people = photographs(size=64)
    chosen = trials(people, 8, pictures=5)
    indices = [trial.index for trial in chosen]
    assert len(set(indices)) < len(indices)
    asked = replace(exam(8), trials=chosen, parts=people.parts[indices])
    looked = []

    class Counting:
        keypoints, looks = judges.keypoints, judges.looks

        def people(self, images, keypoints):
            looked.append(len(images))
            return judges.people(images, keypoints)

    once, each = (see(Counting(), asked, people.images[indices]) for see in (look_at_references, look))
    assert looked == [len(set(indices)), len(indices)]
    for name in ("keypoints", "identity", "clip", "colours"):
        np.testing.assert_allclose(getattr(once, name), getattr(each, name), atol=1e-4)


def test_evaluation_of_a_copyist_gives_the_reference_its_own_scores(copyist, photographs, judges):
    people = photographs(size=64)
    chosen = trials(people, 8, pictures=2)
    found = evaluate(copyist(), judges, people, chosen)
    assert (found["pictures"], found["people"], found["references_refused"]) == (14, 7, 2)
    assert found["identity_judged"] == 14
    assert found["metrics"].keys() == found["ceilings"].keys() == found["autoencoded"].keys()
    for name in found["metrics"].keys() - {"clip_score"}:
        assert found["metrics"][name] == found["ceilings"][name]
    assert found["metrics"]["clothes_colour_distance"]["value"] == 0
    assert found["autoencoded"]["clothes_colour_distance"]["value"] > 0


def test_evaluation_without_an_encoder_leaves_reconstructions_out(copyist, photographs, judges, monkeypatch):
    monkeypatch.setattr("bolid_training.evaluate.run.reconstruct", lambda generator, images, keep: None)
    people = photographs(size=64)
    assert "autoencoded" not in evaluate(copyist(), judges, people, trials(people, 8))


def test_who_has_no_second_photograph_is_asked_for_everything_but_identity(photographs, judges):
    people = with_one_photograph(photographs(size=64), identity=0)
    chosen = trials(people, 8)
    assert [trial.other is None for trial in chosen] == [True] + 7 * [False]
    asked = set_exam(judges, people, [(trial, alike(people, trial)) for trial in chosen])
    seen = look(judges, asked, asked.references)
    values = scores(asked, seen, seen, asked.prompts)
    for name, judged in values.items():
        assert np.isnan(judged[0]) == (name in ("id_similarity", "id_top1"))
        assert np.isfinite(judged[1:]).all()


def test_identity_needs_somebody_with_a_second_photograph(photographs, judges):
    people = photographs(size=64)
    for identity in np.unique(people.identity):
        people = with_one_photograph(people, identity)
    accepted = [(trial, alike(people, trial)) for trial in trials(people, 8)]
    with pytest.raises(InputError, match="none of 8 people has a second photograph"):
        set_exam(judges, people, accepted)


def with_one_photograph(people, identity):
    others = np.flatnonzero((people.identity == identity) & people.photos)[1:]
    metadata = [entry | {"style": "cartoon"} if i in others else entry for i, entry in enumerate(people.metadata)]
    return replace(people, metadata=metadata)


def alike(people, trial):
    return SimpleNamespace(keypoints=people.keypoints[trial.index])


def test_a_bundle_is_as_good_as_itself(copyist, photographs, judges):
    people = photographs(size=64)
    found = compare_bundles(copyist(), copyist(), judges, people, trials(people, 8, pictures=2))
    # each of the two copyists refuses the first photograph that it is shown: one of two trials, and one of one
    assert (found["pictures"], found["references_refused"]) == (13, 3)
    assert found["passed"]
    assert all(metric["difference"]["value"] == 0 for metric in found["metrics"].values())
