"""The comparison with peers, on systems that only sleep: turns, ratios, and what happens when one cannot."""

import importlib
import json
import time
from pathlib import Path

import pytest

from bolid_sdk.bundle import Bundle
from bolid_sdk.sampling import ResolvedSampling

EMBEDDED = Path(__file__).parents[1] / "engines" / "avatar"
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
    modules = {name: importlib.import_module(name) for name in ("gated", "systems", "compare", "protocol")}
    monkeypatch.setattr(modules["compare"], "LOGS", tmp_path / "logs")
    monkeypatch.setattr(modules["compare"], "MOST_ROUNDS", 3)
    monkeypatch.setattr(modules["compare"], "gemm", lambda: {"bf16_gflops": 100.0, "f32_gflops": 50.0})
    return modules


@pytest.fixture
def sleeper(peers, tmp_path):
    def make(name, seconds, *, largest=10_000, ours=False):
        script = tmp_path / f"{name}.py"
        values = {"peers": str(PEERS), "largest": largest, "seconds": seconds, "ours": ours, "name": name}
        script.write_text(SLEEPER.format(**values, diary=str(tmp_path / "diary")))
        applied = peers["gated"].Applied(backend="openvino", precision="fp32") if ours else None
        return peers["systems"].System(name=name, script=str(script), arguments=("{model}",), applied=applied)

    return make


def session(peers, systems, cases):
    return peers["systems"].Session(vae="taesd", systems=tuple(systems), cases=tuple(cases))


def measure(peers, systems, cases, budget=60.0):
    measured = peers["compare"].measure(session(peers, systems, cases), time.perf_counter() + budget)
    return [row for _, _, rows in measured for row in rows]


def four_steps(peers):
    """GFLOP of a picture of 256 px."""
    return 4 * peers["systems"].DENOISER_GFLOP[256] + peers["systems"].TOKENS_GFLOP


def test_systems_take_turns_and_are_compared_with_the_first(peers, sleeper, tmp_path):
    request = peers["protocol"].Request(size=256, steps=4, batch=2)
    rows = measure(peers, [sleeper("A", 0.01, ours=True), sleeper("B", 0.04)], [request])
    assert (tmp_path / "diary").read_text() == "AB" * 4  # once to warm up, three rounds
    assert [row["system"] for row in rows] == ["A", "B"]
    assert rows[0]["seconds_per_image"] == pytest.approx(0.01, abs=1e-6)
    assert rows[0]["ratio"] == 1
    assert 1 < rows[1]["ratio"] < 8
    # two pictures of four steps in ten milliseconds
    assert rows[0]["denoiser_gflops"] == pytest.approx(2 * four_steps(peers) / 0.01, rel=1e-6)
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


def test_an_environment_that_is_missing_says_how_to_get_it(peers, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module("environments"), "FOLDER", tmp_path)
    with pytest.raises(peers["compare"].PeerError, match=r"environments\.py sdcpp"):
        peers["compare"].interpreter(peers["systems"].SDCPP[0])


def test_every_system_has_a_script_and_an_environment_that_exists(peers):
    environments = importlib.import_module("environments")
    for each in {system for session in peers["systems"].SESSIONS for system in session.systems}:
        assert (PEERS / each.script).is_file()
        assert each.environment is None or each.environment in environments.REQUIREMENTS
        json.dumps(each.arguments)
    assert all(session.systems[0] is peers["systems"].OURS for session in peers["systems"].SESSIONS)


def test_our_arguments_are_the_bundle_and_the_sampling(peers):
    compare, fast = peers["compare"], peers["systems"].OURS_INT8_FAST
    bundle, backend, sampling = (compare.filled(a, {"bundle": "runs/bundles/sd15"}) for a in fast.arguments)
    assert (bundle, backend) == ("runs/bundles/sd15-int8", "openvino")
    assert json.loads(sampling) == dict(fast.applied.sampling) == {"caching": "fast"}


def lever(group, text, passed, backend="openvino", precision="fp32", **sampling):
    """A row of levers.json; four steps without guidance."""
    defaults = {"steps": 4, "guidance": 1.0, "sampler": "ddim", "spacing": "trailing", "eta": 0.0}
    chosen = {**defaults, "caching": "off", "guidance_interval": [0.0, 1.0], **sampling}
    place = {"backend": backend, "precision": precision}
    plan = [[step.full, step.branches] for step in ResolvedSampling(**chosen).plan()]
    return {"group": group, "lever": text, "passed": passed, "sampling": chosen, "plan": plan, **place}


FOUR = [
    lever("four", "", True, backend="onnxruntime"),
    lever("four", "backend=openvino", True),
    lever("four", "backend=openvino caching=balanced", True, caching="balanced"),
    lever("four", "backend=openvino steps=2", True, steps=2),
    lever("four", "backend=openvino sampler=lcm", True, sampler="lcm"),
]
TWENTY = [
    lever("twenty", "", True, backend="onnxruntime", steps=20, guidance=3.0),
    lever("twenty", "caching=fast", True, backend="onnxruntime", steps=20, guidance=3.0, caching="fast"),
    lever("twenty", "backend=openvino caching=fast", False, steps=20, guidance=3.0, caching="fast"),
    lever("twenty", "backend=openvino caching=balanced", True, steps=20, guidance=3.0, caching="balanced"),
]


@pytest.mark.parametrize(
    ("system", "steps", "guidance", "levers", "expected"),
    [
        ("OURS_ORT", 4, 1.0, [], True),
        ("OURS", 4, 1.0, [], False),
        ("OURS", 4, 1.0, FOUR, True),
        ("OURS_BALANCED", 4, 1.0, FOUR, True),
        # at four steps it caches another one too
        ("OURS_FAST", 4, 1.0, FOUR, False),
        ("OURS_INT8", 4, 1.0, FOUR, False),
        # two steps instead of four is a lever, two of two is none
        ("OURS", 2, 1.0, FOUR, False),
        ("OURS", 20, 7.5, FOUR + TWENTY, False),
        ("OURS_FAST", 20, 7.5, FOUR + TWENTY, False),
        ("OURS_BALANCED", 20, 7.5, FOUR + TWENTY, True),
        # as many steps, but with one branch each
        ("OURS_BALANCED", 20, 1.0, FOUR + TWENTY, False),
    ],
)
def test_gated_is_what_the_same_lever_was_on_avatar(peers, system, steps, guidance, levers, expected):
    applied = getattr(peers["systems"], system).applied
    assert peers["gated"].is_gated(applied, steps, guidance, levers) is expected


def test_a_row_of_other_steps_than_its_name_plans_by_now_gates_nothing(peers):
    stale = {**FOUR[2], "plan": [[True, 1], [False, 1], [True, 1], [True, 1]]}
    assert not peers["gated"].is_gated(peers["systems"].OURS_BALANCED.applied, 4, 1.0, [*FOUR[:2], stale])


def test_another_sampler_is_not_gated_by_its_steps(peers):
    assert not peers["gated"].is_gated(peers["systems"].OURS.applied, 4, 1.0, [FOUR[0], FOUR[4]])


def test_the_int8_exports_own_gate_counts_where_no_lever_was_measured(peers, tmp_path):
    gated, systems = peers["gated"], peers["systems"]
    manifest = tmp_path / "manifest.json"
    for answer, passed in (({}, False), ({"gate": {"passed": True}}, True), ({"gate": {"passed": False}}, False)):
        manifest.write_text(json.dumps({"verification": answer}))
        assert gated.read_int8_gate(manifest) is passed
        assert gated.is_gated(systems.OURS_INT8.applied, 4, 1.0, [], int8_passed=passed) is passed
        assert not gated.is_gated(systems.OURS_INT8_FAST.applied, 4, 1.0, [], int8_passed=passed)
        assert not gated.is_gated(systems.OURS.applied, 4, 1.0, [], int8_passed=passed)
    failed = [FOUR[0], lever("four", "bundle=avatar-int8", False, precision="int8")]
    assert not gated.is_gated(systems.OURS_INT8.applied, 4, 1.0, failed, int8_passed=True)
    assert not gated.read_int8_gate(tmp_path / "missing.json")
    assert gated.read_levers(tmp_path / "missing.json") == []


def test_results_hear_of_levers_that_were_measured_later(peers, sleeper):
    """And peers have no gates."""
    rows = measure(
        peers, [sleeper("A", 0.01, ours=True), sleeper("B", 0.01)], [peers["protocol"].Request(size=256, steps=4)]
    )
    rows = json.loads(json.dumps(rows))
    for levers, expected in ((FOUR, [True, None]), ([], [False, None])):
        assert [row["gated"] for row in peers["gated"].update(rows, levers, int8_passed=False)] == expected


def test_what_the_denoiser_reaches_is_of_the_faster_peak(peers, sleeper):
    compare = peers["compare"]
    ours, peer = measure(
        peers, [sleeper("A", 0.01, ours=True), sleeper("B", 0.01)], [peers["protocol"].Request(size=256, steps=4)]
    )
    twice = 2 * four_steps(peers) / 0.01
    peak = compare.faster({"bf16_gflops": twice, "f32_gflops": 1}, {"bf16_gflops": 9, "f32_gflops": 2})
    assert peak["f32_gflops"] == 2
    assert compare.with_fraction(ours, peak)["denoiser_of_peak"] == pytest.approx(0.5)
    assert "denoiser_of_peak" not in compare.with_fraction(peer, peak)


def test_a_step_that_is_cached_does_not_count_as_arithmetic(peers):
    answers = [{"stages": {"denoise": 0.01}}]
    request, systems = peers["protocol"].Request(size=256, steps=4), peers["systems"]
    assert "denoiser_gflops" in peers["compare"].stages(systems.OURS, request, answers)
    assert "denoiser_gflops" not in peers["compare"].stages(systems.OURS_FAST, request, answers)


def test_arithmetic_is_what_pytorch_counts(peers):
    """In the embedded denoiser, of which PyTorch has the network; the sampler's update is no product.

    But for upsamplers, which OpenVINO runs with 4/9 of it.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from bolid_export.graphs import bind_graphs
    from bolid_export.sources import default_checkpoint, model_sizes, open_source

    pytest.importorskip("openvino")
    arithmetic = importlib.import_module("arithmetic")
    checkpoint = open_source(default_checkpoint()).checkpoint
    graph = bind_graphs(checkpoint, model_sizes(checkpoint))["denoiser"]
    axes = {"batch": 1, "guided_batch": 1, "latent_height": 16, "latent_width": 16}
    inputs = [torch.zeros(tensor.extents(axes)) for tensor in graph.spec.inputs]
    # the counter does not know the fused attention of the CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        graph(*inputs)
    by_module = {name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()}
    upsamplers = sum(flops for name, flops in by_module.items() if name.endswith("upsamplers.0.conv"))
    counted = sum(arithmetic.denoiser_gflop(Bundle.open(EMBEDDED), 128, part) for part in ("step", "once"))
    assert upsamplers > 0
    assert counted == pytest.approx((counter.get_total_flops() - 5 / 9 * upsamplers) / 1e9, rel=0.01)


def test_a_later_run_keeps_what_it_does_not_measure(peers, sleeper):
    requests = [peers["protocol"].Request(size=size, steps=4) for size in (256, 512)]
    systems = [sleeper("A", 0.01, ours=True), sleeper("B", 0.01)]
    first = [{"session": 1, **row} for row in measure(peers, systems, requests)]
    again = [{"session": number, **row} for number in (0, 1) for row in measure(peers, systems[:1], requests[:1])]
    rows = peers["compare"].merged(first, again)
    found = [(row["session"], row["system"], row["size"]) for row in rows]
    assert found == [(0, "A", 256), (1, "B", 256), (1, "A", 512), (1, "B", 512), (1, "A", 256)]
    assert rows[0] is again[0]
    assert rows[-1] is again[1]
