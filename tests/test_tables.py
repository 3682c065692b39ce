"""benchmarks/tables.py turns results into Markdown, and notices a README that shows others."""

import importlib.util
import json
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "benchmarks" / "tables.py"
RESULTS = {
    "environment": {"cpu": "A CPU", "cores": 2, "versions": {"numpy": "2.4.6"}, "commit": "0123456789abcdef"},
    "results": [
        {"group": "image", "name": "picture", "backend": "slow", "median_ms": 812.34, "q1_ms": 800, "q3_ms": 820},
        {"group": "graphs", "name": "denoiser", "backend": "slow", "median_ms": 90.0, "q1_ms": 89, "q3_ms": 91},
        {"group": "image", "name": "picture", "backend": "fast", "median_ms": 40.1, "q1_ms": 40, "q3_ms": 41},
        {"group": "image", "name": "cold", "backend": "fast", "median_ms": 9.0, "q1_ms": 8.99, "q3_ms": 9.01},
    ],
}
README = "before\n<!-- table: image -->\nold\n<!-- /table -->\nafter\n"


@pytest.fixture
def tables(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SOURCE.parent))
    spec = importlib.util.spec_from_file_location("tables", SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "avatar.json").write_text(json.dumps(RESULTS))
    monkeypatch.setattr(module, "RESULTS", tmp_path)
    return module


def test_a_table_shows_its_group_and_nothing_else_changes(tables):
    assert tables.update(README) == (
        "before\n"
        "<!-- table: image -->\n"
        "| milliseconds | slow | fast |\n"
        "| --- | ---: | ---: |\n"
        "| picture | **812** (800–820) | **40.1** (40.0–41.0) |\n"
        "| cold |  | **9.00** (8.99–9.01) |\n"
        "\n"
        "Median (quartiles). A CPU, 2 cores; numpy 2.4.6; commit 012345678.\n"
        "<!-- /table -->\n"
        "after\n"
    )


def test_an_updated_readme_stays_as_it_is(tables):
    updated = tables.update(README)
    assert tables.update(updated) == updated


def test_an_unknown_table_is_an_error(tables):
    with pytest.raises(KeyError, match="nonsense"):
        tables.update(README.replace("table: image", "table: nonsense"))


def test_check_fails_on_a_stale_readme_and_leaves_it_alone(tables, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text(README)
    monkeypatch.setattr(tables, "DOCUMENTS", (readme,))
    monkeypatch.setattr("sys.argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit) as stopped:
        tables.main()
    assert stopped.value.code not in (0, None)
    assert readme.read_text() == README


def quality(tables, tmp_path, monkeypatch, **measured):
    (tmp_path / "quality.json").write_text(json.dumps(measured))
    monkeypatch.setattr(tables, "EVALUATION", tmp_path / "quality.json")
    return tables.quality()


def row(value):
    return {"value": value, "ci95": [value - 0.1, value + 0.1]}


def test_quality_shows_what_was_judged_and_leaves_out_what_was_not(tables, tmp_path, monkeypatch):
    found = quality(
        tables,
        tmp_path,
        monkeypatch,
        pictures=1000,
        people=250,
        metrics={"id_similarity": row(0.5), "fd_judge_clip": row(0.25)},
        ceilings={"id_similarity": row(0.75), "fd_judge_clip": row(0.125)},
        floors={"id_similarity": row(0.125)},
        autoencoded={"id_similarity": row(0.625), "fd_judge_clip": row(0.25)},
        by_pose={"pose_pck10": {"lying": row(0.25)}, "id_similarity": {"lying": row(0.5), "sitting": row(0.75)}},
    )
    assert found == (
        "|  | generated | the reference itself | the reference, autoencoded | somebody else |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| identity: cosine with another photograph of the person (higher is better) | **0.500** (0.400–0.600)"
        " | **0.750** (0.650–0.850) | **0.625** (0.525–0.725) | **0.125** (0.025–0.225) |\n"
        "| Frechet distance, CLIP features (lower is better) | **0.250** (0.150–0.350)"
        " | **0.125** (0.025–0.225) | **0.250** (0.150–0.350) |  |\n"
        "\n"
        "1000 pictures of 250 unseen people, 95 % intervals. "
        "PCK@0.1 by pose: lying 0.25. Identity by pose: lying 0.50, sitting 0.75.\n"
    )


def test_quality_reads_results_from_before_there_were_judges(tables, tmp_path, monkeypatch):
    rows = {"pose_pck10": row(0.5)}
    old = {"metrics": rows, "ceilings": rows, "floors": rows, "by_pose": {"lying": row(0.25)}}
    found = quality(tables, tmp_path, monkeypatch, pictures=192, **old)
    assert found.startswith("|  | generated | the reference itself | somebody else |\n")
    assert found.endswith("\n192 unseen people, 95 % intervals. PCK@0.1 by pose: lying 0.25.\n")


def test_comparison_has_a_row_a_model_between_real_pictures(tables, tmp_path, monkeypatch):
    metrics = {"fd_judge_clip": row(0.25), "id_similarity": row(0.5), "pose_pck10": row(0.75)}
    made = {"steps": 4, "guidance": 1.0, "pose_input": True, "seconds_per_image": {"value": 0.0714}}
    measured = {
        "rows": [
            {"model": "bolid", "metrics": metrics, **made},
            {"model": "pulid", "metrics": metrics, **made, "guidance": 3.0, "pose_input": False},
        ],
        "ceilings": metrics,
        "floors": {"id_similarity": row(0.125)},
        "setup": {
            "pictures": 1000,
            "people": 250,
            "identity_judged": 900,
            "machine": "A CPU",
            "commit": "0123456789abcdef",
        },
    }
    (tmp_path / "comparison.json").write_text(json.dumps(measured))
    monkeypatch.setattr(tables, "COMPARISON", tmp_path / "comparison.json")
    cells = "**0.250** (0.150–0.350) | **0.500** (0.400–0.600) | **0.750** (0.650–0.850)"
    assert tables.comparison() == (
        "|  | Frechet distance, CLIP ↓ | ID similarity ↑ | POSE accuracy, PCK@0.1 ↑ | s/image |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        f"| BoLID, 4 steps | {cells} | 0.071 |\n"
        f"| PuLID, 4 steps, guidance 3, no pose | {cells} | 0.071 |\n"
        f"| *the reference itself* | {cells} |  |\n"
        "| *somebody else* |  | **0.125** (0.025–0.225) |  |  |\n"
        "\n"
        "1000 pictures of 250 unseen people (identity: 900 pictures of those with another photograph), the same for "
        "every row; 95 % intervals. A CPU; commit 012345678.\n"
    )


def test_poses_stand_beside_real_pictures_in_the_same_poses(tables, tmp_path, monkeypatch):
    embedded = {"pose_pck10": {"lying": row(0.25), "sitting": row(0.5)}, "id_similarity": {"lying": row(0.125)}}
    real = {"pose_pck10": {"lying": row(0.5), "sitting": row(0.75)}}
    measured = {
        "rows": [{"model": "bolid", "by_pose": real}, {"model": "embedded", "by_pose": embedded}],
        "by_pose": {"ceilings": real, "autoencoded": real},
    }
    (tmp_path / "comparison.json").write_text(json.dumps(measured))
    monkeypatch.setattr(tables, "COMPARISON", tmp_path / "comparison.json")
    half, most = "**0.500** (0.400–0.600)", "**0.750** (0.650–0.850)"
    assert tables.poses() == (
        "| PCK@0.1 | generated | the reference itself | the reference, autoencoded |\n"
        "| --- | ---: | ---: | ---: |\n"
        f"| lying | **0.250** (0.150–0.350) | {half} | {half} |\n"
        f"| sitting | {half} | {most} | {most} |\n\n"
    )


def test_ablations_show_what_each_part_changes(tables, tmp_path, monkeypatch):
    whole = {"fd_judge_clip": row(0.25), "id_similarity": row(0.5), "pose_pck10": row(0.75)}
    differences = {"id_similarity": {"value": -0.125, "ci95": [-0.25, 0.0625]}, "pose_pck10": row(-0.5)}
    differences["fd_judge_clip"] = row(0.25)
    measured = {
        "rows": [
            {"model": "bolid", "metrics": whole},
            {"model": "bolid_no_id", "metrics": whole, "minus_first_row": differences},
        ],
        "setup": {"pictures": 1000, "people": 250, "commit": "0123456789abcdef"},
    }
    (tmp_path / "ablations.json").write_text(json.dumps(measured))
    monkeypatch.setattr(tables, "ABLATIONS", tmp_path / "ablations.json")
    assert tables.ablations() == (
        "|  | Frechet distance, CLIP ↓ | ID similarity ↑ | POSE accuracy, PCK@0.1 ↑ |\n"
        "| --- | ---: | ---: | ---: |\n"
        "| BoLID | **0.250** (0.150–0.350) | **0.500** (0.400–0.600) | **0.750** (0.650–0.850) |\n"
        "| without L_id | **+0.250** (+0.150 to +0.350) | -0.125 (-0.250 to +0.062) | **-0.500** (-0.600 to -0.400) |\n"
        "\n"
        "1000 pictures of 250 unseen people; 95 % intervals; commit 012345678.\n"
    )
