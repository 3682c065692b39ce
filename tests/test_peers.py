"""The comparison with peers, on systems that only sleep: turns, ratios, and what happens when one cannot."""

import importlib
import json
import time
from pathlib import Path

import pytest

PEERS = Path(__file__).parents[1] / "benchmarks" / "peers"

SLEEPER = """
import sys, time
sys.path.insert(0, {peers!r})
from protocol import serve

def draw(request):
    print("a library says something on standard output")
    if request.size > {largest}:
        raise ValueError("too large")
    time.sleep({seconds})
    with open({diary!r}, "a") as diary:
        diary.write("{name}")
    return {{"seconds": {seconds} * request.batch, "stages": {{"denoise": {seconds}}}}} if {ours} else None

serve(draw)
"""


@pytest.fixture
def peers(monkeypatch, tmp_path):
    """The modules of benchmarks/peers by name; logs go to a temporary folder."""
    monkeypatch.syspath_prepend(str(PEERS))
    modules = {name: importlib.import_module(name) for name in ("systems", "compare", "protocol")}
    monkeypatch.setattr(modules["compare"], "LOGS", tmp_path / "logs")
    monkeypatch.setattr(modules["compare"], "MOST_ROUNDS", 3)
    return modules


@pytest.fixture
def sleeper(peers, tmp_path):
    def make(name, seconds, *, largest=10_000, ours=False):
        script = tmp_path / f"{name}.py"
        values = {"peers": str(PEERS), "largest": largest, "seconds": seconds, "ours": ours, "name": name}
        script.write_text(SLEEPER.format(**values, diary=str(tmp_path / "diary")))
        return peers["systems"].System(name=name, script=str(script), arguments=("{model}",), ours=ours)

    return make


def session(peers, systems, cases):
    return peers["systems"].Session(vae="taesd", systems=tuple(systems), cases=tuple(cases))


def measure(peers, systems, cases, budget=60.0):
    return list(peers["compare"].measure(session(peers, systems, cases), time.perf_counter() + budget))


def test_systems_take_turns_and_are_compared_with_the_first(peers, sleeper, tmp_path):
    request = peers["protocol"].Request(size=256, steps=4, batch=2)
    rows = measure(peers, [sleeper("A", 0.01, ours=True), sleeper("B", 0.04)], [request])
    assert (tmp_path / "diary").read_text() == "AB" * 4  # once to warm up, three rounds
    assert [row["system"] for row in rows] == ["A", "B"]
    assert rows[0]["seconds_per_image"] == pytest.approx(0.01, abs=1e-6)
    assert rows[0]["ratio"] == 1
    assert 1 < rows[1]["ratio"] < 8
    # 172 GFLOP a step and picture: two pictures of four steps in ten milliseconds
    assert rows[0]["denoiser_gflops"] == pytest.approx(172 * 8 / 0.01, rel=1e-6)
    assert rows[0]["rss_mb"] > 0


def test_who_cannot_is_left_out(peers, sleeper, capsys):
    """A size that one refuses, and a system that does not start."""
    cases = [peers["protocol"].Request(size=size, steps=4) for size in (256, 512)]
    broken = peers["systems"].System(name="C", script="/no/such/script.py", arguments=())
    rows = measure(peers, [sleeper("A", 0.01), sleeper("B", 0.01, largest=256), broken], cases)
    assert [(row["system"], row["size"]) for row in rows] == [("A", 256), ("B", 256), ("A", 512)]
    assert all(row["rounds"] == 3 for row in rows)
    said = capsys.readouterr().err
    assert "B cannot draw" in said
    assert "too large" in said
    assert "C is left out" in said


def test_the_budget_ends_it(peers, sleeper):
    assert measure(peers, [sleeper("A", 0.01)], [peers["protocol"].Request(size=256, steps=4)], budget=0.0) == []


def test_an_environment_that_is_missing_says_how_to_get_it(peers):
    with pytest.raises(peers["compare"].PeerError, match=r"environments\.py sdcpp"):
        peers["compare"].interpreter(peers["systems"].SDCPP[0])


def test_every_system_has_a_script_and_an_environment_that_exists(peers):
    environments = importlib.import_module("environments")
    for each in {system for session in peers["systems"].SESSIONS for system in session.systems}:
        assert (PEERS / each.script).is_file()
        assert each.environment is None or each.environment in environments.REQUIREMENTS
        assert each.ours == (each.gated is not None)
        json.dumps(each.arguments)
