"""What benchmarks/ concludes from results: who is fastest, which promises hold, tables, the chart, the footprint."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OURS, FAST, INT8 = "BoLID, OpenVINO bf16", "BoLID, OpenVINO bf16, caching fast", "BoLID, OpenVINO int8"
PLAIN, DIFFUSERS = "plain OpenVINO bf16", "diffusers + IP-Adapter bf16"


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def load(name):
    return importlib.import_module(name)


def row(system, seconds, *, first, gated=None, vae="taesd", size=512, steps=4, batch=1, **more):
    """One of cpu.json; `gated` is None for peers. `first`: seconds of the session's first system."""
    precision = "int8" if "int8" in system else "fp32"
    applied = {"backend": "openvino", "precision": precision, "sampling": {}}
    return {
        "system": system,
        "ours": gated is not None,
        "gated": gated,
        "vae": vae,
        "size": size,
        "steps": steps,
        "batch": batch,
        "guidance": 1.0 if steps == 4 else 7.5,
        "seconds_per_image": seconds,
        "spread": [0.9 * seconds, 1.1 * seconds],
        "ratio": seconds / first,
        "compared_with": OURS,
        "rss_mb": 3000,
        "ready_seconds": 2.0,
        "first_picture_seconds": 3.0,
        **({"applied": applied} if gated is not None else {}),
        **more,
    }


ROWS = [
    row(OURS, 2.0, first=2.0, gated=True, denoiser_of_peak=0.83),
    row(FAST, 1.5, first=2.0, gated=True),
    row(INT8, 1.0, first=2.0, gated=False, rss_mb=2400),
    row(PLAIN, 2.4, first=2.0),
    row(DIFFUSERS, 8.0, first=2.0),
    row(OURS, 4.0, first=4.0, gated=True, vae="kl"),
    row(PLAIN, 4.5, first=4.0, vae="kl"),
    row(DIFFUSERS, 9.0, first=4.0, vae="kl"),
    # another session, an hour later, when everything took twice as long
    row(OURS, 4.0, first=4.0, gated=True),
    row("compiled", 7.2, first=4.0),
]
DOCUMENT = {
    "setup": {"cpu": "A CPU", "cores": 2, "commit": "0123456789abcdef"},
    "gemm": {"before": {"bf16_gflops": 800}, "after": {"bf16_gflops": 820}},
    "rows": ROWS,
}


def test_ratios_to_what_both_ran_beside_cancel_a_slower_hour():
    standings = load("standings")
    case = standings.Case(size=512, steps=4)
    rows = standings.select(ROWS, case, "taesd")
    assert standings.advantage(rows[OURS], rows["compiled"]) == pytest.approx(1.8)
    assert standings.advantage(rows[FAST], rows["compiled"]) == pytest.approx(2.4)
    assert standings.advantage(rows[FAST], None) is None


def test_the_best_is_gated_and_the_decoder_is_the_same_or_the_faster():
    standings = load("standings")
    case = standings.Case(size=512, steps=4)
    assert standings.best_gated(ROWS, case)["system"] == FAST
    assert standings.best_gated(ROWS, case, "kl")["system"] == OURS
    assert standings.fastest_peer(ROWS, case, "kl")["system"] == PLAIN
    ungated = [{**each, "gated": each["ours"] and each["system"] == INT8} for each in ROWS]
    assert standings.best_gated(ungated, case)["system"] == INT8
    assert standings.best_gated(ROWS, standings.Case(size=256, steps=4)) is None


def checks(**found):
    return {check.promise: check for check in load("verdict").checks(found)}


def test_promises_are_held_against_what_was_measured():
    found = checks(cpu=DOCUMENT)
    values = {
        # 4.5 s with the checkpoint's decoder against 1.5 s
        "512 px, 4 steps: the fastest peer with the checkpoint's decoder": (3.0, True),
        "512 px, 4 steps: diffusers bf16 with the same": (6.0, True),
        # the compiled one, at half speed, against 1.5 s
        "512 px, 4 steps: the fastest peer, taesd on both sides": (1.6, False),
        "512 px, 4 steps: the fastest peer, kl on both sides": (1.125, False),
        "without any lever, against the plain OpenVINO pipeline": (1.125, True),
        "512 px, 4 steps: the bf16 denoiser's share of the matrix products' peak in the same run": (0.83, True),
        "peak memory of SD1.5 at 512 px, fp16 on disk": (3000 * 2**20 / 1e9, True),
        "peak memory of SD1.5 at 512 px, int8": (2400 * 2**20 / 1e9, False),
    }
    for promise, (value, holds) in values.items():
        assert found[promise].value == pytest.approx(value), promise
        assert found[promise].holds is holds, promise
    missing = found["256 px, 4 steps: the fastest peer with the checkpoint's decoder"]
    assert (missing.value, missing.holds) == (None, False)
    assert "not measured" in str(missing)


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.booleans())
def test_a_promise_holds_on_the_right_side_of_its_limit(value, limit, at_least):
    check = load("verdict").Check(promise="p", value=value, limit=limit, at_least=at_least)
    assert check.holds is (value >= limit if at_least else value <= limit)
    assert ("holds" in str(check)) is check.holds
    assert check.to_dict()["holds"] is check.holds


def test_the_embedded_models_promises():
    times = {"process start to file (`bolid-infer`)": 900.0, "picture from a reference": 160.0}
    results = [{"name": name, "backend": "onnxruntime", "median_ms": value} for name, value in times.items()]
    # nobody gets this one without asking for it
    results += [{"name": name, "backend": "openvino", "median_ms": 1.0} for name in times]
    found = checks(avatar={"results": results}, footprint={"total_mb": 277.0})
    holds = {promise: check.holds for promise, check in found.items() if check.value is not None}
    assert holds == {
        "embedded model, process start to file": True,
        "embedded model, a warm picture": False,
        "runtime install, engines included": False,
    }


def test_default_settings_are_compared_with_the_teacher():
    metrics = {name: {"value": 0.5} for name in ("id_similarity", "pose_pck10", "clip_score")}
    # of the teacher minus the default: what is lost
    lost = {"id_similarity": 0.009, "pose_pck10": 0.011, "clip_score": 0.006}
    differences = {name: {"value": value, "ci95": [value - 0.1, value + 0.1]} for name, value in lost.items()}
    rows = [{"model": "bolid", "metrics": metrics}]
    rows += [{"model": "guided25", "metrics": metrics, "minus_first_row": differences}]
    sampling = {"caching": "fast", "guidance_interval": [0.0, 1.0]}
    found = checks(few_steps={"rows": rows}, manifest={"sampling": sampling})
    drops = {promise: check for promise, check in found.items() if "drop of" in promise}
    assert [check.value for check in drops.values()] == pytest.approx([0.009, 0.011, 0.012])
    assert [check.holds for check in drops.values()] == [True, False, False]
    assert not found["levers on by default beside few steps"].holds
    sampling["caching"] = "off"
    assert checks(manifest={"sampling": sampling})["levers on by default beside few steps"].holds


def test_what_the_repository_has_can_be_judged():
    """The real files' layouts, whatever they say."""
    verdict = load("verdict")
    found = {name: json.loads(path.read_text()) for name, path in verdict.SOURCES.items() if path.exists()}
    assert {"avatar", "few_steps", "manifest", "footprint"} <= set(found)
    measured = [check for check in verdict.checks(found) if check.value is not None]
    assert len(measured) >= 7


def write(tmp_path, **documents):
    for name, document in documents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    return tmp_path


def test_the_table_of_systems(tmp_path, monkeypatch):
    results = write(tmp_path, cpu=DOCUMENT, footprint={"total_mb": 277.0})
    monkeypatch.setattr(load("acceleration"), "ROOT", tmp_path)
    lines = load("acceleration").cpu(results).splitlines()
    assert lines[2] == "| seconds a picture | 512 px, 4 steps | peak memory | start to first picture |"
    # ours first, the fastest first; 1.5 s is our best gated one
    assert lines[4:9] == [
        f"| {INT8}, not gated | **1.00** (0.90–1.10), 0.67 x | 2.5 GB (512 px) | 5.0 s |",
        f"| {FAST} | **1.50** (1.35–1.65), 1.00 x | 3.1 GB (512 px) | 5.0 s |",
        f"| {OURS} | **2.00** (1.80–2.20), 1.33 x | 3.1 GB (512 px) | 5.0 s |",
        f"| {PLAIN} | **2.40** (2.16–2.64), 1.60 x | 3.1 GB (512 px) | 5.0 s |",
        "| compiled | **7.20** (6.48–7.92), 2.40 x | 3.1 GB (512 px) | 5.0 s |",
    ]
    text = "\n".join(lines)
    assert f"512 px, 4 steps, a small decoder (TAESD's): {FAST} is 1.60 times as fast as {PLAIN}." in text
    assert f"512 px, 4 steps, the checkpoint's decoder: {OURS} is 1.12 times as fast as {PLAIN}." in text
    (tmp_path / "docs" / "images").mkdir(parents=True)
    (tmp_path / "docs" / "images" / "cpu.png").touch()
    assert load("acceleration").cpu(results).startswith("![Seconds a picture by system](docs/images/cpu.png)")
    assert "of this machine's 820 GFLOP/s in bf16: 83% at 512 px. The runtime takes 277 MB on disk." in text


def test_the_table_of_levers(tmp_path):
    def entry(lever, change, state):
        summary = {"value": 0.5 + change, "ci95": [0.4, 0.6]}
        difference = {"value": change, "ci95": [change - 0.005, change + 0.005]}
        names = ("id_similarity", "pose_pck10", "clip_score")
        return {
            "group": "four steps",
            "lever": lever,
            "bundle": "avatar",
            "backend": "onnxruntime",
            "sampling": {"steps": 4, "sampler": "ddim", "guidance": 1.0},
            "pictures": 175,
            "speed_up": {"median": 1.25},
            "psnr": {"value": 31.26} if lever else None,
            "metrics": dict.fromkeys(names, summary),
            "differences": dict.fromkeys(names, difference),
            "gates": {"id_similarity": {"state": "passed"}, "clip_score": {"state": state}},
        }

    rows = [entry("", 0.0, "passed"), entry("caching=fast", -0.004, "open: more pictures are needed")]
    found = load("acceleration").levers(write(tmp_path, levers={"rows": rows})).splitlines()
    assert (
        found[0] == "| four steps | speed-up | ID similarity | POSE accuracy, PCK@0.1 | CLIP score | PSNR, dB | gates |"
    )
    assert found[2] == (
        "| unaccelerated: `avatar`, onnxruntime, 4 steps of ddim | 1.25 | 0.500 | 0.500 | 0.500 |  |  |"
    )
    cell = "0.496 (-0.004: -0.009 to +0.001)"
    assert found[3] == f"| `caching=fast` | 1.25 | {cell} | {cell} | {cell} | 31.3 | open |"
    assert found[5].startswith("175 pictures each")


def test_the_table_of_exports_has_limits_beside_values(tmp_path):
    setup = {"cpu": "A CPU", "cores": 2, "commit": "0123456789abcdef"}
    common = {"model": "sd15", "engine_seconds": 0.0, "engine_rss_mb": 0, "bytes": 2_100_000_000, "setup": setup}
    rows = [
        {**common, "export": "fp16", "seconds": 170.0, "rss_mb": 8000},
        {**common, "export": "tensorrt-rtx", "seconds": 250.0, "engine_seconds": 100.0, "rss_mb": 5000}
        | {"engine_rss_mb": 6000},
        {
            **common,
            "export": "fp16",
            "model": "sdxl",
            "family": "stable-diffusion-xl",
            "seconds": 999.0,
            "rss_mb": 15000,
        },
        {**common, "export": "fp32", "seconds": 999.0, "rss_mb": 1000},
    ]
    found = load("acceleration").export(write(tmp_path, export={"rows": rows})).splitlines()[2:6]
    assert found == [
        # 8,000 MiB are more than 8 GB
        "| sd15, fp16 | **170 s** (≤ 180) |  | **8.39 GB** (≤ 8, **exceeded**) |  | 2.10 GB |",
        "| sd15, tensorrt-rtx | **150 s** (≤ 180) | **100 s** (≤ 120) | **5.24 GB** (≤ 8) | 6.29 GB | 2.10 GB |",
        "| sdxl, fp16 | **999 s** |  | **15.73 GB** (≤ 20) |  | 2.10 GB |",
        "| sd15, fp32 | **999 s** |  | **1.05 GB** |  | 2.10 GB |",
    ]


@pytest.mark.parametrize("name", ["cpu", "levers", "export"])
def test_what_was_not_measured_says_how_to_measure_it(tmp_path, name):
    text = getattr(load("acceleration"), name)(tmp_path)
    assert text.startswith("Not measured yet: `python benchmarks/")
    assert (BENCHMARKS.parent / text.split("`")[1].split()[1]).is_file()


def test_the_chart_has_a_bar_for_every_system_on_a_logarithmic_axis():
    chart = load("chart")
    shown = chart.sections(DOCUMENT)
    assert [section.title for section in shown] == ["512 px, 4 steps, decoder kl", "512 px, 4 steps, decoder taesd"]
    assert [bar.label for bar in shown[1].bars] == [INT8, FAST, OURS, PLAIN, "compiled", DIFFUSERS]
    assert [bar.kind for bar in shown[1].bars] == ["not gated", "gated", "gated", "peer", "peer", "peer"]
    axis = chart.Axis(low=0.1, high=10.0)
    assert axis.x(1.0) - axis.x(0.1) == pytest.approx(axis.x(10.0) - axis.x(1.0))
    assert axis.ticks == pytest.approx([0.1, 0.2, 0.5, 1, 2, 5, 10])
    pixels = np.asarray(chart.chart(shown))
    lengths = {
        kind: (pixels[60:] == chart.COLOURS[kind]).all(-1).sum(1).max() for kind in ("not gated", "gated", "peer")
    }
    # 1, 4 and 9 s
    assert lengths["not gated"] < lengths["gated"] < lengths["peer"]


def test_the_chart_shows_how_cost_grows():
    rows = [
        *ROWS,
        row(OURS, 0.5, first=0.5, gated=True, size=256),
        row(OURS, 0.4, first=0.4, gated=True, size=256, batch=4),
    ]
    times = {"identify alone": 40.0, "identify alone, 4 references": 110.0}
    avatar = {
        "results": [
            {"name": name, "backend": "onnxruntime", "median_ms": value, "q1_ms": value, "q3_ms": value}
            for name, value in times.items()
        ]
    }
    *_, growth, references = load("chart").sections({"rows": rows}, avatar)
    assert [bar.seconds for bar in growth.bars] == [0.5, 2.0, 0.4]
    assert [bar.seconds for bar in references.bars] == pytest.approx([0.04, 0.11])


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="nothing to draw"):
        load("chart").chart([])


def test_the_footprint_counts_each_file_once(tmp_path):
    footprint = load("footprint")
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "a").write_bytes(bytes(3_000_000))
    (tmp_path / "large" / "b").hardlink_to(tmp_path / "large" / "a")
    (tmp_path / "small.py").write_bytes(bytes(500_000))
    found = footprint.sizes(tmp_path)
    assert list(found.items()) == [("large", 3.0), ("small.py", 0.5)]
    assert footprint.summary(found) == {"total_mb": 3.5, "packages_mb": {"large": 3.0}}
