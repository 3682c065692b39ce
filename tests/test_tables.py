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
