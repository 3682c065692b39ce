"""What is encoded is kept: the same prompt or pose is not encoded twice, and nothing else changes."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bolid_sdk.conditioning import KEPT_PROMPTS
from bolid_sdk.generator import Generator
from bolid_sdk.kept import Kept


@pytest.fixture
def counted(tiny_bundle, monkeypatch):
    """A generator of its own, and how often each of its encoders ran."""
    generator, runs = Generator(tiny_bundle.path, threads=1), Counter()
    for name in ("text_encoder", "pose_guider", "image_projector"):
        engine = generator._graphs[name]

        def run(inputs, name=name, run=engine.run):
            runs[name] += 1
            return run(inputs)

        monkeypatch.setattr(engine, "run", run)
    return generator, runs


def test_nothing_is_encoded_where_there_is_no_image_prompt(counted, reference):
    """The scale is zero then, so that tokens of nothing would change nothing."""
    generator, runs = counted
    person = generator.identify(reference)
    generator(person, "walking")
    assert "image_projector" not in runs
    generator(person, "walking", image_prompt=reference)
    assert runs["image_projector"] == 2  # the picture, and none for the unconditional half


def test_a_repeated_prompt_and_pose_are_encoded_once(counted, reference):
    generator, runs = counted
    person = generator.identify(reference)
    first = generator(person, "walking", seed=1)
    assert runs == {"text_encoder": 2, "pose_guider": 1}  # the prompt and the empty one
    again = generator(person, "walking", seed=1)
    generator.batch([(person, "walking")] * 3, pose_scale=0.5)
    assert runs == {"text_encoder": 2, "pose_guider": 1}
    np.testing.assert_array_equal(np.asarray(first.image), np.asarray(again.image))
    generator(person, "sitting", pose=1 - person.keypoints[:, :2], width=96)
    assert runs == {"text_encoder": 3, "pose_guider": 2}


def test_what_came_before_does_not_change_a_picture(tiny_bundle, reference):
    fresh, used = (Generator(tiny_bundle.path, threads=1) for _ in range(2))
    used.batch([(reference, prompt) for prompt in ("a beach", "sitting", "walking on a beach")], seed=9)
    pictures = [np.asarray(generator(reference, "walking", seed=1).image) for generator in (fresh, used)]
    np.testing.assert_array_equal(*pictures)


def test_only_the_latest_prompts_are_kept(counted):
    generator, runs = counted
    conditioner = generator._conditioner
    words = ("walking", "sitting", "on", "a", "red", "sofa", "beach")
    prompts = [f"{one} {two}" for one in words for two in words][: KEPT_PROMPTS + 1]
    for prompt in [*prompts, prompts[-1], prompts[0]]:
        conditioner.text([prompt], 1)
    assert runs["text_encoder"] == KEPT_PROMPTS + 2
    assert len(conditioner._texts) == KEPT_PROMPTS


def test_threads_share_what_is_kept(counted):
    generator, _ = counted
    conditioner = generator._conditioner

    def encode(prompt):
        return conditioner.text([prompt], 2)["encoder_hidden_states"]

    prompts = ["walking", "sitting", "on a sofa"] * 8
    alone = [encode(prompt) for prompt in prompts[:3]]
    conditioner._texts = Kept(KEPT_PROMPTS)
    with ThreadPoolExecutor(8) as pool:
        for index, states in enumerate(pool.map(encode, prompts)):
            np.testing.assert_array_equal(states, alone[index % 3])
