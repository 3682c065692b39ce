"""The plan of a loop: which steps are full, which are guided."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bolid_sdk.caching import (
    CACHINGS,
    DAMPING,
    EARLY_STEPS,
    MANY_STEPS,
    extrapolations,
    full_steps,
    guided_steps,
    plan_steps,
)

fractions = st.floats(0, 1)
intervals = st.tuples(fractions, fractions).filter(lambda ends: ends[0] < ends[1])


def drawn(full):
    return "".join("F" if step else "s" for step in full)


@pytest.mark.parametrize(
    ("steps", "balanced", "fast"),
    [
        (1, "F", "F"),
        (2, "FF", "FF"),
        (3, "FFF", "FsF"),
        (4, "FFsF", "FsFs"),
        (7, "FFsFsFF", "FsFsFsF"),
        (8, "FFsFsFsF", "FFsFsFss"),
        (12, "FFsFsFsFsFsF", "FFsFsFssFssF"),
        (20, "FFsFsFsFsFsFsFsFsFsF", "FFsFsFssFssFssFssFss"),
        (25, "FFsFsFsFsFsFsFsFsFsFsFsFF", "FFsFsFsFssFssFssFssFssFss"),
    ],
)
def test_schedules_of_usual_lengths(steps, balanced, fast):
    assert drawn(full_steps([2] * steps, "off")) == "F" * steps
    assert drawn(full_steps([2] * steps, "balanced")) == balanced
    assert drawn(full_steps([2] * steps, "fast")) == fast


@given(st.lists(st.integers(1, 2), min_size=1, max_size=60), st.sampled_from(CACHINGS))
def test_a_feature_is_there_fits_and_is_not_old(branches, caching):
    """Every shallow step follows a full one of as many branches, at most a period - 1 steps earlier."""
    full = full_steps(branches, caching)
    assert full[0]
    assert full[-1] or (caching == "fast" and any(full[-MANY_STEPS["fast"].late :]))
    for index, is_full in enumerate(full):
        if not is_full:
            source = max(i for i in range(index) if full[i])
            cadence = MANY_STEPS[caching]
            assert index - source < (cadence.early if index < max(EARLY_STEPS, len(full) / 3) else cadence.late)
            assert branches[source] == branches[index]


@given(st.integers(1, 100))
def test_more_caching_is_less_work(steps):
    counts = [sum(full_steps([2] * steps, caching)) for caching in CACHINGS]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == steps
    assert counts[2] <= 5 * steps / 12 + 3


@given(st.integers(1, 100), intervals)
def test_guided_steps_are_one_stretch_of_about_that_length(steps, interval):
    guided = guided_steps(steps, interval)
    assert abs(sum(guided) - steps * (interval[1] - interval[0])) <= 1
    assert sum(a != b for a, b in zip([False, *guided], [*guided, False], strict=True)) in (0, 2)


@given(st.integers(1, 100))
def test_by_default_nothing_changes(steps):
    assert {(step.full, step.branches) for step in plan_steps(steps, guided=True)} == {(True, 2)}
    assert {(step.full, step.branches) for step in plan_steps(steps, guided=False, interval=(0.2, 0.4))} == {(True, 1)}


def test_the_step_after_a_change_of_branches_is_full():
    plan = plan_steps(12, guided=True, interval=(0.25, 0.75), caching="fast")
    assert [step.branches for step in plan] == [1] * 3 + [2] * 6 + [1] * 3
    assert drawn([step.full for step in plan]) == "FFsFsFssFFss"


def test_features_are_continued_along_the_line():
    full = [step == "F" for step in "FFsFsFFssF"]
    assert extrapolations(full, [2] * 10) == pytest.approx([0, 0, 0, 0, 0.5 * DAMPING, 0, 0, DAMPING, 2 * DAMPING, 0])


def test_the_first_steps_feature_and_two_that_differ_in_branches_are_kept_as_they_are():
    assert extrapolations([True, False, True, False], [2, 2, 2, 2]) == [0, 0, 0, 0]
    full = [step == "F" for step in "FFFsFs"]
    assert extrapolations(full, [1, 1, 2, 2, 2, 2]) == [0, 0, 0, 0, 0, 0.5 * DAMPING]


@given(st.lists(st.integers(1, 2), min_size=1, max_size=60), st.sampled_from(CACHINGS))
def test_a_feature_is_not_continued_far(branches, caching):
    full = full_steps(branches, caching)
    for is_full, weight in zip(full, extrapolations(full, branches), strict=True):
        assert 0 <= weight <= MANY_STEPS[caching].late - 1
        assert not (is_full and weight)
