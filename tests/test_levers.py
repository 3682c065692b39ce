"""benchmarks/levers.py and steadiness.py: what they conclude from what they measured."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bolid_sdk import Sampling
from bolid_sdk.sampling import ResolvedSampling

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FEW_STEPS = ResolvedSampling(steps=4, guidance=1.0, sampler="ddim", spacing="trailing")
GUIDED = ResolvedSampling(steps=20, guidance=3.0, sampler="ddim", spacing="trailing")


def load(name):
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def groups():
    return load("lever_groups")


@pytest.fixture(scope="module")
def levers(groups):
    """Finds `lever_groups` among the modules that are loaded already."""
    return load("levers")


def test_levers_are_read(groups):
    assert groups.sampling_of("") == Sampling()
    expected = Sampling(steps=8, caching="fast", guidance_interval=(0.1, 0.75))
    assert groups.sampling_of("steps=8 caching=fast guidance_interval=0.1:0.75") == expected
    for text in ("speed=9", "steps=many", "caching"):
        with pytest.raises(ValueError, match=r"speed|many|caching"):
            groups.sampling_of(text).resolve(FEW_STEPS)


def test_a_lever_changes_words_of_its_base(groups):
    lever = groups.lever_of("bundle=one backend=onnxruntime steps=20 guidance=3", "backend=openvino steps=12")
    assert lever.place == (groups.ENGINES / "one", "openvino")
    assert lever.sampling == Sampling(steps=12, guidance=3.0)
    assert groups.lever_of("bundle=/elsewhere", "").place == (Path("/elsewhere"), "onnxruntime")


def test_every_default_lever_is_another_way_to_make_the_picture(groups):
    """By the steps that run, not by the name: at two steps caching=fast would be no caching."""
    for group, defaults in zip(groups.GROUPS, (FEW_STEPS, GUIDED), strict=True):
        found = [groups.lever_of(group.base, text) for text in ("", *group.levers)]
        resolved = [lever.sampling.resolve(defaults) for lever in found]
        ways = [
            (*lever.place, chosen.sampler, tuple(map(str, chosen.plan())))
            for lever, chosen in zip(found, resolved, strict=True)
        ]
        assert len(set(ways)) == len(ways)
        assert resolved[0].steps == defaults.steps
    assert not any("guidance" in text for text in groups.GROUPS[0].levers)


def test_what_cannot_be_run_is_named_and_left_out(groups, levers, tmp_path, capsys):
    (tmp_path / "manifest.json").touch()
    texts = ("caching=fast", "backend=nonsense", "bundle=/no/such/bundle")
    group = groups.Group(name="mine", base=f"bundle={tmp_path}", levers=texts)
    assert [lever.text for lever in levers.usable(group)] == ["", "caching=fast"]
    said = capsys.readouterr().err
    assert "nonsense is not installed" in said
    assert "no bundle /no/such/bundle" in said


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (("passed", "passed"), "passed"),
        (("passed", "open: more pictures are needed"), "open"),
        (("open: more pictures are needed", "failed"), "failed"),
    ],
)
def test_the_worst_gate_is_the_levers(levers, states, expected):
    assert levers.state({"gates": dict(enumerate({"state": state} for state in states))}) == expected


def test_psnr_of_known_errors(levers):
    grey = np.full((1, 4, 4, 3), 100, np.uint8)
    assert levers.psnr(grey, grey + 1)[0] == pytest.approx(20 * np.log10(255))
    assert levers.psnr(grey + 1, grey)[0] == pytest.approx(20 * np.log10(255))
    assert levers.psnr(grey, grey)[0] == pytest.approx(100)


def test_memory_that_grows_is_not_flat():
    steadiness = load("steadiness")

    def moments(growth):
        megabytes = [100 + growth * number / 100 for number in range(100)]
        return [steadiness.Moment(seconds=1.0, megabytes=value, equal=True) for value in megabytes]

    assert steadiness.verdict(moments(0))["flat"]
    assert not steadiness.verdict(moments(10))["flat"]


def test_rows_that_were_not_measured_stay_in_the_file(levers, tmp_path):
    def measured(group, commit, *names):
        rows = [{"group": group, "lever": name, "of": commit} for name in names]
        return {"setup": {"bundles": {group: commit}, "commit": commit}, "rows": rows}

    file = tmp_path / "levers.json"
    for document in (
        measured("guided", "first", "", "backend=openvino", "no lever any more"),
        measured("mine", "first", "", "steps=8"),
        measured("four steps", "first", "", "steps=2", "steps=3"),
        measured("four steps", "second", "", "steps=3"),
    ):
        found = levers.with_other_rows(document, file)
        file.write_text(json.dumps(found))
    assert [(row["group"], row["lever"], row["of"]) for row in found["rows"]] == [
        ("four steps", "", "second"),
        ("four steps", "steps=3", "second"),
        ("four steps", "steps=2", "first"),
        ("guided", "", "first"),
        ("guided", "backend=openvino", "first"),
        ("mine", "", "first"),
        ("mine", "steps=8", "first"),
    ]
    assert found["setup"] == {
        "bundles": {"guided": "first", "mine": "first", "four steps": "second"},
        "commit": "second",
    }


def test_some_levers_of_a_group_may_be_asked_for(levers):
    (group,) = levers.asked_groups(["four steps"], ["steps=2", "caching=fast"])
    assert (group.name, group.levers) == ("four steps", ("caching=fast", "steps=2"))
    assert levers.asked_groups([], []) == list(levers.GROUPS)
    with pytest.raises(levers.click.UsageError, match=r"no group asked for has the lever 'steps=2'"):
        levers.asked_groups(["guided"], ["steps=2"])
