"""Step caching and guidance intervals on the tiny bundle, against a loop by hand."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from bolid_sdk.backends import BACKENDS
from bolid_sdk.contracts import graph_specs
from bolid_sdk.errors import InputError
from bolid_sdk.generator import Generator
from bolid_sdk.manifest import GraphEntry, Manifest
from bolid_sdk.sampling import Sampling

PROMPT = "sitting on a red sofa"
INSTALLED = [entry.name for entry in BACKENDS if entry.installed]
GUIDED = ("encoder_hidden_states", "identity_tokens", "image_tokens", "pose_features_0", "pose_features_1")


@pytest.fixture(scope="module", params=INSTALLED)
def generator(request, tiny_bundle, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BOLID_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield Generator(tiny_bundle.path, backend=request.param, threads=1)


@pytest.fixture(scope="module")
def person(generator, reference):
    return generator.identify(reference)


def by_hand(generator, person, sampling, full, branches):
    """Host to host, with neither bindings nor recycled memory: `full` is a string of F and s, `branches` of 1 and 2."""
    job = generator._start([(person, PROMPT)], {"seed": 3, "sampling": sampling})
    constants = generator._plan(job, range(1)).conditioning
    engines = {"F": generator._graphs["denoiser"], "s": generator._graphs["denoiser_shallow"]}
    sample = np.random.Generator(np.random.Philox(3)).standard_normal((4, 8, 8), np.float32)[None]
    sample *= np.float32(job.table.initial_std)
    x0, deep, taken = np.zeros_like(sample), [], []
    rows = zip(range(len(full)), full, branches, job.table.timesteps, job.table.coefficients, strict=True)
    for index, kind, count, timestep, coefficients in rows:
        values = {name: value[-int(count) :] if name in GUIDED else value for name, value in constants.items()}
        values |= {"sample": sample, "previous_x0": x0, "noise": np.zeros_like(x0)}
        values |= {"timestep": timestep[None], "coefficients": coefficients, "guidance": np.float32([2.5])}
        if kind == "s":
            values |= continued(deep, taken, index)
        outputs = engines[kind].run({name: values[name] for name in engines[kind].spec.input_names})
        sample, x0 = outputs["next_sample"], outputs["x0"]
        if kind == "F":
            deep.append(outputs["deep_feature"])
            taken.append(index)
    return sample


def continued(deep, taken, index):
    """A feature of step `index`, on the line through those of the last two steps that were `taken`, the first apart."""
    latest = earlier = deep[-1]
    weight = 0.0
    if len(deep) > 2 and deep[-2].shape == latest.shape:
        earlier, weight = deep[-2], 0.85 * (index - taken[-1]) / (taken[-1] - taken[-2])
    return {"deep_feature": latest, "earlier_deep_feature": earlier, "extrapolation": np.float32([weight])}


def latents(generator, person, sampling):
    job = generator._start([(person, PROMPT)], {"seed": 3, "sampling": sampling})
    *_, last = generator._denoise(generator._plan(job, range(1)))
    return last.sample.numpy()


@pytest.mark.parametrize(
    ("options", "full", "branches"),
    [
        ({}, "FFFFFFFF", "22222222"),
        ({"caching": "balanced"}, "FFsFsFsF", "22222222"),
        ({"caching": "fast"}, "FFsFsFss", "22222222"),
        ({"guidance_interval": (0.3, 0.7)}, "FFFFFFFF", "11222211"),
        ({"guidance_interval": (0.3, 1.0), "caching": "balanced"}, "FFFsFsFF", "11222222"),
        ({"guidance": 1.0, "caching": "fast"}, "FFsFsFss", "11111111"),
        ({"guidance_interval": (0.0, 0.01)}, "FFFFFFFF", "11111111"),
    ],
)
@pytest.mark.parametrize("sampler", ["ddim", "dpm++2m"])
def test_the_loop_equals_one_by_hand(generator, person, options, full, branches, sampler):
    sampling = Sampling(**{"steps": 8, "guidance": 2.5, "sampler": sampler, **options})
    found = latents(generator, person, sampling)
    np.testing.assert_array_equal(found, by_hand(generator, person, sampling, full, branches))


def test_each_lever_changes_the_picture(generator, person):
    """Otherwise the comparisons above would compare nothing."""
    plain = latents(generator, person, Sampling(steps=8))
    for options in ({"caching": "balanced"}, {"caching": "fast"}, {"guidance_interval": (0.3, 0.7)}):
        assert np.abs(latents(generator, person, Sampling(steps=8, **options)) - plain).max() > 1e-3


def test_shallow_steps_do_not_run_the_whole_unet(generator, person, monkeypatch):
    """And the feature they are given is a tensor on the device, not a copy on the host."""
    engines = {name: generator._graphs[name] for name in ("denoiser", "denoiser_shallow")}
    runs = {name: [] for name in engines}
    for name, engine in engines.items():
        monkeypatch.setattr(engine, "bind", counted(engine.bind, runs[name]))
    generator(person, PROMPT, sampling=Sampling(steps=12, caching="fast"))
    assert (len(runs["denoiser"]), len(runs["denoiser_shallow"])) == (6, 6)
    assert runs["denoiser"] == [None] * 6
    assert not any(feature is None or isinstance(feature, np.ndarray) for feature in runs["denoiser_shallow"])


def counted(bind, runs):
    class Counting:
        def __init__(self, loop):
            self.loop = loop

        def run(self, inputs):
            runs.append(inputs.get("deep_feature"))
            return self.loop.run(inputs)

    return lambda constants, outputs: Counting(bind(constants, outputs))


@pytest.mark.parametrize(("caching", "given"), [("off", [False] * 6), ("balanced", [True] * 4 + [False] * 2)])
def test_the_deep_feature_is_given_to_who_goes_on_from_it(generator, person, monkeypatch, caching, given):
    """Four of six steps are full with caching, and a shallow step has no feature to give."""
    found = []
    for name in ("denoiser", "denoiser_shallow"):
        engine = generator._graphs[name]
        monkeypatch.setattr(engine, "bind", watched(engine.bind, found))
    generator(person, PROMPT, sampling=Sampling(steps=6, caching=caching))
    assert sorted(found, reverse=True) == given


def watched(bind, found):
    class Watching:
        def __init__(self, loop):
            self.loop = loop

        def run(self, inputs):
            outputs = self.loop.run(inputs)
            assert {"next_sample", "x0"} <= set(outputs)
            found.append("deep_feature" in outputs)
            return outputs

    return lambda constants, outputs: Watching(bind(constants, outputs))


def test_a_loop_gives_what_it_is_asked_for(generator, person):
    """The same values, whatever else is left out."""
    job = generator._start([(person, PROMPT)], {"seed": 3})
    sample = np.random.default_rng(0).standard_normal((1, 4, 8, 8), np.float32)
    inputs = {**generator._plan(job, range(1)).conditioning, "guidance": np.float32([2.5]), "noise": 0 * sample}
    inputs |= {"sample": sample, "previous_x0": sample, "timestep": job.table.timesteps[:1]}
    inputs["coefficients"] = job.table.coefficients[0]
    engine = generator._graphs["denoiser"]
    everything = engine.bind({}).run(inputs)
    assert set(everything) == set(engine.spec.output_names)
    loop = engine.bind({}, ["x0", "next_sample"])
    for _ in range(3):
        found = loop.run(inputs)
        assert list(found) == ["next_sample", "x0"]
        for name, value in found.items():
            np.testing.assert_array_equal(value.numpy(), everything[name].numpy())


def test_the_result_tells(generator, person):
    options = {"steps": 4, "caching": "balanced", "guidance_interval": (0.0, 0.6)}
    story = generator(person, PROMPT, seed=1, sampling=Sampling(**options)).to_dict()["sampling"]
    assert story["caching"] == "balanced"
    assert tuple(story["guidance_interval"]) == (0.0, 0.6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"caching": "much"}, "off, balanced, fast"),
        ({"guidance_interval": (0.5, 0.5)}, "from < to"),
        ({"guidance_interval": (-0.1, 0.5)}, "guidance_interval"),
        ({"guidance_interval": (0.1, 1.5)}, "guidance_interval"),
        ({"guidance_interval": (0.1, float("nan"))}, "guidance_interval"),
        ({"guidance_interval": 0.5}, "guidance_interval"),
        ({"guidance_interval": ("a", "b")}, "guidance_interval"),
    ],
)
def test_unusable_levers_are_named(generator, person, options, message):
    with pytest.raises(InputError, match=message):
        generator(person, PROMPT, sampling=Sampling(**options))


@pytest.fixture(scope="module")
def old_bundle(make_bundle, tiny_files, tmp_path_factory):
    """As bundles were before there was caching: a denoiser that gives no feature, a manifest that names no lever."""
    model = onnx.load(tiny_files["denoiser.onnx"])
    kept = [output for output in model.graph.output if output.name != "deep_feature"]
    model.graph.ClearField("output")
    model.graph.output.extend(kept)
    path = tmp_path_factory.mktemp("old") / "denoiser.onnx"
    onnx.save(model, path)
    sizes = replace(make_bundle().manifest.sizes, deep_channels=0)
    graphs = {name: GraphEntry(file=f"{name}.onnx", spec=spec) for name, spec in graph_specs(sizes).items()}
    files = {name: file for name, file in tiny_files.items() if name != "denoiser_shallow.onnx"}
    return make_bundle({**files, "denoiser.onnx": path}, sizes=sizes, graphs=graphs)


def test_an_old_bundle_works_as_ever(old_bundle, tiny_bundle, reference):
    old, new = (Generator(bundle.path, threads=1) for bundle in (old_bundle, tiny_bundle))
    assert "caching" not in old.bundle.manifest.capabilities
    assert "caching" in new.bundle.manifest.capabilities
    pictures = [np.asarray(generator(reference, PROMPT, seed=1).image) for generator in (old, new)]
    np.testing.assert_array_equal(*pictures)
    with pytest.raises(InputError, match="has no caching"):
        old(reference, PROMPT, sampling=Sampling(caching="fast"))


def test_an_old_manifest_is_read(old_bundle):
    values = old_bundle.manifest.to_dict()
    del values["sizes"]["deep_channels"], values["sampling"]["caching"], values["sampling"]["guidance_interval"]
    manifest = Manifest.from_dict(values)
    assert manifest.sampling == old_bundle.manifest.sampling
    assert (manifest.sampling.caching, manifest.sampling.guidance_interval) == ("off", (0.0, 1.0))
