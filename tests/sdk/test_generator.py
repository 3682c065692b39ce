"""The whole runtime on the tiny bundle."""

import io
import json
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bolid_sdk.errors import (
    BackendError,
    IdentityFileError,
    ImageError,
    InputError,
    NumericalError,
    PersonNotFoundError,
    PoseError,
    PromptError,
    SeveralPeopleError,
)
from bolid_sdk.generator import Generator
from bolid_sdk.identity import Identity
from bolid_sdk.pose import Pose, pose_from_array
from bolid_sdk.sampling import Sampling

PROMPT = "sitting on a red sofa"


def pixels(result) -> np.ndarray:
    return np.asarray(result.image, np.int16)


@pytest.fixture(scope="module")
def person(generator, reference):
    return generator.identify(reference)


def test_one_call_gives_a_picture_and_its_history(generator, reference, tmp_path):
    result = generator(reference, PROMPT, seed=7, identity_scale=0.8, pose_scale=1.2)
    path = result.save(tmp_path / "out.png")
    with Image.open(path) as saved:
        story = json.loads(saved.text["bolid"])
        assert saved.size == (64, 64)
    assert story["seed"] == 7
    assert story["prompt"] == PROMPT
    assert story["digest"] == generator.bundle.digest
    assert (story["identity_scale"], story["image_scale"], story["pose_scale"]) == ([0.8] * 3, [0.0] * 3, 1.2)
    assert "onnxruntime" in story["backend"]
    assert set(story["timings"]) >= {"identity", "text", "pose", "denoise", "decode"}


@pytest.mark.parametrize("sampler", ["ddim", "euler", "euler_a", "dpm++2m", "lcm"])
def test_the_loop_equals_a_numpy_loop(generator, person, sampler):
    """The same denoiser called by hand, host to host, without bindings or recycled memory."""
    sampling = Sampling(sampler=sampler, steps=5, guidance=2.5, eta=1.0)
    result = generator(person, PROMPT, seed=3, sampling=sampling)
    job = generator._start([(person, PROMPT)], {"seed": 3, "sampling": sampling})
    plan = generator._plan(job, range(1))
    draws = np.random.Generator(np.random.Philox(3))
    sample = draws.standard_normal((4, 8, 8), np.float32)[None] * np.float32(job.table.initial_std)
    x0 = np.zeros_like(sample)
    engine = generator._graphs["denoiser"]
    for timestep, row in zip(job.table.timesteps, job.table.coefficients, strict=True):
        noise = draws.standard_normal((4, 8, 8), np.float32)[None] if job.table.uses_noise else np.zeros_like(x0)
        outputs = engine.run(
            {
                **plan.conditioning,
                "sample": sample,
                "previous_x0": x0,
                "noise": noise,
                "timestep": timestep[None],
                "coefficients": row,
                "guidance": np.array([2.5], np.float32),
            }
        )
        sample, x0 = outputs["next_sample"], outputs["x0"]
    expected = generator._decode(sample)[0]
    np.testing.assert_array_equal(np.asarray(result.image), np.asarray(expected))


def test_the_seed_decides_whatever_the_batch(generator, person):
    sampling = Sampling(sampler="lcm")
    alone = generator(person, PROMPT, seed=9, sampling=sampling)
    together = generator.batch([(person, "walking"), (person, PROMPT), (person, "a beach")], seed=8, sampling=sampling)
    assert [result.seed for result in together] == [8, 9, 10]
    assert np.abs(pixels(alone) - pixels(together[1])).max() <= 1
    assert np.abs(pixels(together[0]) - pixels(together[1])).max() > 1


def test_seeds_may_be_numpys(generator, person):
    options = {"sampling": Sampling(steps=1)}
    assert generator(person, PROMPT, seed=np.array(5), **options).seed == 5
    assert [result.seed for result in generator.batch([(person, PROMPT)] * 2, seed=np.uint8([7, 3]), **options)] == [
        7,
        3,
    ]


def test_batches_are_cut_to_what_fits(tiny_bundle, person, generator):
    small = Generator(tiny_bundle.path, threads=1, max_batch=2)
    requests = [(person, "walking")] * 5
    for one, other in zip(small.batch(requests, seed=1), generator.batch(requests, seed=1), strict=True):
        assert one.seed == other.seed
        assert np.abs(pixels(one) - pixels(other)).max() <= 1


def test_people_of_different_numbers_of_tokens_are_not_drawn_together(generator, person, monkeypatch):
    """Repeating the tokens up to a common multiple would be 6,720 of them for 3, 4, 5 and 7 references of 16."""
    counts, made = [2, 3, 2, 3, 2], []
    people = [replace(person, tokens=np.zeros((count, 16), np.float32)) for count in counts]
    job = replace(generator._start([(person, PROMPT)] * 5, {"seed": 1}), people=tuple(people))
    assert list(generator._parts(job)) == [[0, 2, 4], [1, 3]]
    monkeypatch.setattr(generator, "_start", lambda requests, options: job)
    monkeypatch.setattr(generator, "_plan", lambda job, part: made.append(part) or part)
    monkeypatch.setattr(generator, "_denoise", lambda plan: [None])
    monkeypatch.setattr(generator, "_results", lambda plan, last: [f"picture {index}" for index in plan])
    assert generator.batch([]) == [f"picture {index}" for index in range(5)]
    assert made == [[0, 2, 4], [1, 3]]


def test_an_image_prompt_is_encoded_once_a_call(tiny_bundle, person, picture, monkeypatch):
    small, encoded = Generator(tiny_bundle.path, threads=1, max_batch=2), []
    encode = small._conditioner.encode_image
    monkeypatch.setattr(small._conditioner, "encode_image", lambda image: encoded.append(image) or encode(image))
    small.batch([(person, PROMPT)] * 5, image_prompt=picture(5), sampling=Sampling(steps=1))
    assert len(encoded) == 1


def test_a_picture_in_several_requests_is_read_once(generator, reference, monkeypatch):
    picture, identified = Image.open(reference), []
    identify = generator.identify
    monkeypatch.setattr(generator, "identify", lambda person: identified.append(person) or identify(person))
    people = [str(reference), reference, [reference], (str(reference),), picture, picture, [reference, picture]]
    generator.batch([(person, PROMPT) for person in people], sampling=Sampling(steps=1))
    assert len(identified) == 3


def test_timings_are_those_of_the_call(tiny_bundle, person):
    small = Generator(tiny_bundle.path, threads=1, max_batch=1)
    first, second = small.batch([(person, PROMPT)] * 2, sampling=Sampling(steps=1))
    assert first.timings == second.timings


def test_stream_previews_and_finishes(generator, person):
    previews = []
    for step in generator.stream(person, PROMPT, seed=2, sampling=Sampling(steps=3)):
        assert step.total == 3
        previews.append((step, step.preview()))
        if step.index < step.total:
            with pytest.raises(InputError, match="no result yet"):
                step.result()
    assert [step.index for step, _ in previews] == [1, 2, 3]
    expected = generator(person, PROMPT, seed=2, sampling=Sampling(steps=3))
    np.testing.assert_array_equal(np.asarray(previews[-1][0].result().image), np.asarray(expected.image))
    for step, picture in previews:
        np.testing.assert_array_equal(np.asarray(step.preview()), np.asarray(picture))


def test_each_input_matters(generator, person, picture, standing):
    plain = pixels(generator(person, PROMPT, seed=1))
    changes = {
        "image prompt": {"image_prompt": picture(5)},
        "no pose": {"pose": None},
        "keypoints": {"pose": 1 - standing},
        "identity scale": {"identity_scale": 0.0},
        "pose scale": {"pose_scale": 0.3},
        "guidance": {"sampling": Sampling(guidance=1.0)},
    }
    for name, options in changes.items():
        assert np.abs(pixels(generator(person, PROMPT, seed=1, **options)) - plain).max() > 0, name
    silent = pixels(generator(person, PROMPT, seed=1, image_prompt=picture(5), image_scale=0.0))
    np.testing.assert_array_equal(silent, plain)
    no_pose = pixels(generator(person, PROMPT, seed=1, pose=None))
    np.testing.assert_array_equal(pixels(generator(person, PROMPT, seed=1, pose_scale=0)), no_pose)


def test_the_unconditional_branch_has_no_pose(generator, standing):
    poses = [pose_from_array(standing), None]
    (alone, guided) = (generator._conditioner.pose(poses, 1.0, 128, 128, branches) for branches in (1, 2))
    for name, features in guided.items():
        assert np.abs(alone[name][0]).max() > 0
        assert np.abs(alone[name][1]).max() == 0
        np.testing.assert_array_equal(features, np.concatenate([np.zeros_like(alone[name]), alone[name]]))


def test_sizes_beside_the_native_one(generator, person):
    result = generator(person, PROMPT, width=96, height=128)
    assert result.image.size == (96, 128)


def test_scales_for_each_layer(generator, person):
    one = generator(person, PROMPT, seed=1, identity_scale=0.5)
    same = generator(person, PROMPT, seed=1, identity_scale=[0.5, 0.5, 0.5])
    np.testing.assert_array_equal(pixels(one), pixels(same))


def test_several_references_are_one_person(generator, reference, picture):
    identity = generator.identify([reference, picture(1), picture(2)])
    assert identity.tokens.shape == (4, 16)
    assert not np.array_equal(identity.tokens, generator.identify(reference).tokens)


def test_identities_travel(generator, person, tmp_path):
    saved = Identity.load(person.save(tmp_path / "anna.npz"))
    for copy in (saved, pickle.loads(pickle.dumps(person))):
        np.testing.assert_array_equal(copy.tokens, person.tokens)
        np.testing.assert_array_equal(copy.keypoints, person.keypoints)
        assert (copy.digest, copy.aspect) == (person.digest, person.aspect)


def test_identities_of_another_encoder_are_refused(generator, person):
    stranger = Identity(tokens=person.tokens, keypoints=person.keypoints, aspect=1.0, digest="0" * 64)
    with pytest.raises(IdentityFileError, match="identify the person again"):
        generator(stranger, PROMPT)


def test_damaged_identity_files_are_refused(person, tmp_path):
    path = person.save(tmp_path / "anna.npz")
    content = path.read_bytes()
    for name, damage in {"cut": content[:100], "empty": b"", "text": b"hello"}.items():
        (tmp_path / name).write_bytes(damage)
        with pytest.raises(IdentityFileError):
            Identity.load(tmp_path / name)
    np.savez(tmp_path / "pickled.npz", tokens=np.array([{}], object), keypoints=0.0, aspect=1.0, digest="x")
    np.savez(tmp_path / "shape.npz", tokens=np.zeros(3), keypoints=np.zeros((2, 3)), aspect=1.0, digest="x")
    for name in ("pickled.npz", "shape.npz", "absent.npz"):
        with pytest.raises(IdentityFileError):
            Identity.load(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"aspect": 0.0}, "aspect 0.0"),
        ({"aspect": -1.0}, "aspect -1.0"),
        ({"keypoints": np.full((12, 3), 1e30, np.float32)}, "far outside"),
    ],
)
def test_identities_with_impossible_poses_are_refused(person, tmp_path, change, message):
    with pytest.raises(IdentityFileError, match=message):
        Identity.load(replace(person, **change).save(tmp_path / "anna.npz"))


@pytest.mark.parametrize("shape", [(0, 16), (3, 16), (8, 16), (4, 8)])
def test_identities_with_other_tokens_are_refused(generator, person, shape):
    with pytest.raises(IdentityFileError, match=f"has {shape[0]} tokens of {shape[1]}"):
        generator(replace(person, tokens=np.zeros(shape, np.float32)), PROMPT)


def test_identity_files_that_cannot_be_unpacked_are_refused(person, tmp_path):
    path = person.save(tmp_path / "anna.npz")
    locked, promising = bytearray(path.read_bytes()), io.BytesIO()
    locked[locked.index(b"PK\x01\x02") + 8] |= 1  # the directory's flag of an archive with a password
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**13,)}
    np.lib.format.write_array_header_1_0(promising, header)
    with zipfile.ZipFile(tmp_path / "promising.npz", "w") as archive:
        for name in ("tokens", "keypoints", "aspect", "digest"):
            archive.writestr(f"{name}.npy", promising.getvalue())
    (tmp_path / "locked.npz").write_bytes(locked)
    for name in ("locked.npz", "promising.npz"):
        with pytest.raises(IdentityFileError, match="write it again"):
            Identity.load(tmp_path / name)


def test_threads_share_a_generator(generator, person):
    def make(seed):
        return pixels(generator(person, PROMPT, seed=seed, sampling=Sampling(steps=6, sampler="lcm")))

    alone = [make(seed) for seed in range(6)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(make, range(6)))
    np.testing.assert_array_equal(alone, together)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seed": -1}, InputError, "seed"),
        ({"seed": 1.5}, InputError, "seed"),
        ({"seed": [1, 2]}, InputError, "seed"),
        ({"seed": np.array(1.5)}, InputError, "seed"),
        ({"seed": np.array([[1]])}, InputError, "seed"),
        ({"width": 100}, InputError, "multiples of 32 from 32 to 128"),
        ({"height": 256}, InputError, "height"),
        ({"original_size": (512, 512)}, InputError, "has no size conditioning"),
        ({"identity_scale": float("nan")}, InputError, "not finite"),
        ({"identity_scale": [1.0, 2.0]}, InputError, "one number or 3"),
        ({"identity_scale": "much"}, InputError, "not numeric"),
        ({"image_scale": float("inf"), "image_prompt": Image.new("RGB", (9, 9))}, InputError, "not finite"),
        ({"pose_scale": [1, 2]}, InputError, "pose_scale"),
        ({"pose": [[0, 0]]}, PoseError, "12, 2"),
        ({"pose": [[float("nan")] * 2] * 12}, PoseError, "NaN"),
        ({"pose": [[300, 200]] * 12}, PoseError, "fractions"),
        ({"pose": Pose(keypoints=np.zeros((5, 3), np.float32))}, PoseError, "12, 2"),
        ({"pose": Pose(keypoints=np.full((12, 3), np.nan, np.float32))}, PoseError, "NaN"),
        ({"pose": Pose(keypoints=np.zeros((12, 3), np.float32), aspect=0.0)}, PoseError, "aspect 0.0"),
        ({"pose": Pose(keypoints=np.zeros((12, 3), np.float32), aspect=float("nan"))}, PoseError, "aspect nan"),
        ({"pose": "nowhere.png"}, ImageError, "no such picture"),
        ({"image_prompt": "nowhere.png"}, ImageError, "no such picture"),
        ({"image_prompt": 5}, ImageError, "int is no picture"),
        ({"sampling": Sampling(steps=0)}, InputError, "steps=0"),
        ({"sampling": Sampling(steps=2.5)}, InputError, "whole number"),
        ({"sampling": Sampling(guidance=float("nan"))}, InputError, "guidance"),
        ({"sampling": Sampling(guidance=-1.0)}, InputError, "guidance"),
        ({"sampling": Sampling(sampler="best")}, InputError, "ddim, euler"),
        ({"sampling": Sampling(steps=2000)}, InputError, "2000 steps"),
    ],
)
def test_mistakes_are_named_before_anything_runs(generator, person, options, error, message):
    with pytest.raises(error, match=message):
        generator(person, PROMPT, **options)


@pytest.mark.parametrize("prompt", ["", "   ", None, 7, "a\0b", "a\ud800"])
def test_prompts_have_to_say_something(generator, person, prompt):
    with pytest.raises(PromptError):
        generator(person, prompt)


def test_long_prompts_are_cut_and_told(generator, person):
    result = generator(person, "walking " * 80, seed=1)
    assert [notice.code for notice in result.warnings] == ["prompt_truncated"]
    assert "walking" in result.warnings[0].message


def test_nobody_and_too_many_people(generator):
    with pytest.raises(PersonNotFoundError, match="no person found in reference 1"):
        generator.identify(Image.new("RGB", (64, 64), (90, 90, 90)))
    bright = np.full((64, 64, 3), 250, np.uint8)
    bright[:8] = 0
    with pytest.raises(SeveralPeopleError, match="crop the picture"):
        generator.identify(bright)


@pytest.mark.parametrize("count", [0, 17])
def test_number_of_references(generator, picture, count):
    with pytest.raises(InputError, match="1 to 16"):
        generator.identify([picture()] * count)


def test_nan_names_step_and_graph(make_bundle, tiny_files, reference, tmp_path):
    import onnx

    model = onnx.load(tiny_files["denoiser.onnx"])
    for weight in model.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) == 4:
            weight.raw_data = np.full(weight.dims, np.nan, np.float32).tobytes()
    onnx.save(model, tmp_path / "denoiser.onnx")
    bundle = make_bundle({**tiny_files, "denoiser.onnx": tmp_path / "denoiser.onnx"})
    with pytest.raises(NumericalError, match="denoiser at step 1 of 4"):
        Generator(bundle.path)(reference, PROMPT)


def test_unknown_option_is_a_type_error(generator, person):
    with pytest.raises(TypeError, match="scale"):
        generator(person, PROMPT, scale=1)


def test_a_missing_backend_is_no_fallback(tiny_bundle):
    with pytest.raises(BackendError, match="installed: onnxruntime"):
        Generator(tiny_bundle.path, backend="tensorflow")
    with pytest.raises(BackendError, match="CUDA"):
        Generator(tiny_bundle.path, device="cuda")
    with pytest.raises(BackendError, match="unknown device"):
        Generator(tiny_bundle.path, device="quantum")


def test_a_backend_that_is_not_installed_says_how(tiny_bundle, monkeypatch):
    from bolid_sdk import backends

    absent = backends.BackendEntry(name="other", module="x", needs="surely_absent", install="pip install other")
    monkeypatch.setattr(backends, "BACKENDS", (*backends.BACKENDS, absent))
    with pytest.raises(BackendError, match="not installed: pip install other"):
        Generator(tiny_bundle.path, backend="other")


@pytest.mark.parametrize("failure", ["ImportError", "OSError", "RuntimeError"])
def test_a_backend_that_is_installed_and_broken_is_passed_over(tiny_bundle, tmp_path, monkeypatch, failure):
    from bolid_sdk import backends

    name = f"broken_{failure.lower()}"
    (tmp_path / f"{name}.py").write_text(f"raise {failure}('libcore.so: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    broken = backends.BackendEntry(name="other", module=name, needs=name, install="pip install other")
    monkeypatch.setattr(backends, "BACKENDS", (broken, *backends.BACKENDS))
    assert backends.open_backend().description.startswith("onnxruntime")
    why = r"other is installed but cannot be imported \(libcore\.so: .*\); install it again: pip install other"
    with pytest.raises(BackendError, match=why):
        Generator(tiny_bundle.path, backend="other")


def test_models_without_pose_and_image_prompt(make_bundle, tiny_files, reference):
    """Optional graphs may be absent; the identity then sees whole pictures."""
    from bolid_sdk.contracts import graph_specs
    from bolid_sdk.manifest import GraphEntry

    bundle = make_bundle()
    graphs = {
        name: GraphEntry(file=f"{name}.onnx", spec=spec)
        for name, spec in graph_specs(bundle.manifest.sizes).items()
        if name not in ("pose_estimator", "vae_encoder")
    }
    files = {name: path for name, path in tiny_files.items() if name not in ("pose_estimator.onnx", "vae_encoder.onnx")}
    generator = Generator(make_bundle(files, graphs=graphs).path)
    assert generator(reference, PROMPT).image.size == (64, 64)
    with pytest.raises(InputError, match="has no pose estimation"):
        generator(reference, PROMPT, pose=reference)
