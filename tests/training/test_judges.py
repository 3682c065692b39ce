"""The judges on tiny sizes: what they learn from, what they find, and that they come back from disk as they were."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from bolid_training.avatars.parts import Part
from bolid_training.data import People, pixels
from bolid_training.degrade import blur, degrade, soften, squeeze
from bolid_training.judges.clip import odd_people
from bolid_training.judges.panel import keep_judges, load_judges
from bolid_training.judges.perceptual import perceptual_distance
from bolid_training.judges.pose import PoseJudge, build_pose_judge
from bolid_training.judges.tasks import TASKS, build_judge_task
from bolid_training.loop import LoopOptions, train
from bolid_training.metric_learning import body_boxes, box_views, draw_pairs, identification, samples_by_person
from bolid_training.model.pose_estimator import FLIP, draw_heatmaps
from bolid_training.views import upright


def people(count=24, views=3):
    """Noise, with keypoints and clothes at random places."""
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(0.2, 0.8, (count, 12, 3)).astype(np.float32)
    keypoints[..., 2] = 2
    parts = rng.choice([Part.BACKGROUND, Part.UPPER, Part.LOWER, Part.HAIR], (count, 64, 64)).astype(np.uint8)
    told = {"captions": ["standing", "a person at the beach"], "attributes": {"person": None}}
    entry = {"style": "photo", "pose": "standing", "scene": "beach"} | told
    return People(
        images=rng.integers(256, size=(count, 64, 64, 3), dtype=np.uint8),
        parts=parts,
        keypoints=keypoints,
        identity=np.arange(count, dtype=np.int32) // views,
        metadata=[entry] * count,
    )


@pytest.fixture(scope="module")
def runs(judge_config, tmp_path_factory):
    """All judges, two steps each."""
    runs = tmp_path_factory.mktemp("judges")
    for name in TASKS:
        options = LoopOptions(
            out=runs / name, steps=2, batch_size=4, learning_rate=1e-3, validate_every=2, mixed_precision="no"
        )
        train(build_judge_task(name, people(), people(), judge_config), options)
    return runs


def test_kept_judges_are_what_was_trained(runs, judge_config, tmp_path):
    sizes = keep_judges(runs, tmp_path)
    assert all(size < 6e6 for size in sizes.values())
    assert load_file(tmp_path / "pose" / "model.safetensors").popitem()[1].dtype in (torch.half, torch.int64)
    task = build_judge_task("judge_identity", people(), people(), judge_config)
    task.load(runs / "judge_identity" / "model")
    found, expected = load_judges(tmp_path).identity.state_dict(), task.network.state_dict()
    assert all((found[name].float() - expected[name].float()).abs().max() < 2e-3 for name in expected)


def test_judges_find_keypoints_and_unit_embeddings_in_any_number_of_pictures(runs, tmp_path):
    keep_judges(runs, tmp_path)
    judges, images = load_judges(tmp_path), people().images[:5]
    assert judges.keypoints(images).shape == (5, 12, 3)
    for embeddings in (judges.people(images), judges.clip.embed_images(images), judges.clip.embed_texts(["a"] * 5)):
        assert np.linalg.norm(embeddings, axis=-1) == pytest.approx(1, abs=1e-5)
    assert judges.people(images)[3] == pytest.approx(judges.people(images[3:4])[0], abs=1e-4)


def test_missing_judges_are_named_with_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"identity, pose, clip.*bolid-train stage judge_identity"):
        load_judges(tmp_path)
    with pytest.raises(FileNotFoundError, match="bolid-train stage judge_identity"):
        keep_judges(tmp_path, tmp_path / "out")


def test_the_pose_judge_favours_neither_side(judge_config):
    judge = build_pose_judge(judge_config).eval()
    picture = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        straight, mirrored = judge.heatmaps(picture), judge.heatmaps(picture.flip(-1))
    assert torch.allclose(straight, mirrored.flip(-1)[:, FLIP], atol=1e-5)


def test_a_look_at_a_part_finds_keypoints_in_the_picture(judge_config, monkeypatch):
    """A judge that sees the picture's own heatmaps, cut as the picture is."""
    truth = torch.rand(2, 12, 2, generator=torch.Generator().manual_seed(0)) * 0.4 + 0.3
    judge = build_pose_judge(judge_config)
    monkeypatch.setattr(PoseJudge, "heatmaps", lambda self, pixels: pixels)
    views = upright(torch.tensor([[0.5, 0.45], [0.55, 0.5]]), torch.tensor([0.8, 0.9]))
    found = judge.look(draw_heatmaps(truth, 64, 64), views)
    assert np.abs(found[..., :2] - truth.numpy()).max() < 0.005


def test_pairs_are_two_pictures_of_each_of_different_people():
    group = people()
    first, second = draw_pairs(samples_by_person(group), 6, np.random.default_rng(0))
    assert (first != second).all()
    assert (group.identity[first] == group.identity[second]).all()
    assert len(np.unique(group.identity[first])) == 6


def test_identification_of_known_cosines():
    found = identification(torch.tensor([[0.9, 0.1, 0.2], [0.8, 0.7, 0.0], [0.1, 0.2, 0.5]]))
    assert found["top1"] == pytest.approx(2 / 3)
    assert found["cos_same"] == pytest.approx(0.7)
    assert found["cos_other"] == pytest.approx(1.4 / 6)


def test_the_second_clip_learns_from_half_of_the_people():
    kept = odd_people(people())
    assert set(kept.identity) == {1, 3, 5, 7}
    assert len(kept) == len(kept.metadata) == 12


@pytest.mark.parametrize("change", [blur, squeeze, soften])
def test_softness_keeps_a_plain_picture_and_smooths_noise(change):
    plain = torch.full((4, 3, 32, 32), 0.3)
    assert torch.allclose(change(plain, np.random.default_rng(0)), plain, atol=1e-5)
    noise = pixels(people().images[:4])
    assert change(noise, np.random.default_rng(0)).std() < noise.std()


def test_damage_is_repeatable_and_leaves_some_pictures_alone():
    images = pixels(people().images)
    damaged = [degrade(images, np.random.default_rng(3)) for _ in range(2)]
    assert torch.equal(*damaged)
    same = (damaged[0] == images).flatten(1).all(1)
    assert same.any()
    assert not same.all()
    assert damaged[0].abs().max() <= 1


def test_perceptual_distance_is_lpips_formula_by_loops(judges):
    rng = np.random.default_rng(0)
    first = rng.integers(256, size=(2, 64, 64, 3), dtype=np.uint8)
    second = np.clip(first + rng.normal(0, [[[[10]]], [[[60]]]], first.shape), 0, 255).astype(np.uint8)
    points = rng.uniform(0.2, 0.8, (2, 12, 3)).astype(np.float32)
    points[..., 2] = 2
    found = perceptual_distance(judges.identity, first, second, points)
    cuts = [box_views(body_boxes(points)).cut(pixels(images), 32) for images in (first, second)]
    with torch.no_grad():
        stages = [judges.identity.resnet(cut, output_hidden_states=True).hidden_states for cut in cuts]
    expected = np.zeros(2)
    for a, b in zip(*stages, strict=True):
        a, b = a.numpy(), b.numpy()
        for picture in range(2):
            places = [
                np.square(
                    a[picture, :, y, x] / np.linalg.norm(a[picture, :, y, x])
                    - b[picture, :, y, x] / np.linalg.norm(b[picture, :, y, x])
                ).sum()
                for y in range(a.shape[2])
                for x in range(a.shape[3])
            ]
            expected[picture] += np.mean(places) / len(stages[0])
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert 0 < found[0] < found[1]
    assert (perceptual_distance(judges.identity, first, first, points) == 0).all()
