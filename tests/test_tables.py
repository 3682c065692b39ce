"""benchmarks/tables.py turns results into Markdown, and notices a README that shows others."""

import importlib.util
import json
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "benchmarks" / "tables.py"
RESULTS = {
    "environment": {"cpu": "A CPU", "cores": 2, "versions": {"numpy": "2.4.6"}, "commit": "0123456789abcdef"},
    "results": [
        {"group": "image", "name": "picture", "median_ms": 812.34, "iqr_ms": 5.05, "min_ms": 800.0, "rounds": 6},
        {"group": "graphs", "name": "denoiser", "median_ms": 90.0, "iqr_ms": 1.0, "min_ms": 89.0, "rounds": 50},
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
        "| image | median, ms | quartiles apart, ms | fastest, ms | rounds |\n"
        "| --- | ---: | ---: | ---: | ---: |\n"
        "| picture | 812.3 | 5.0 | 800.0 | 6 |\n"
        "\n"
        "A CPU, 2 cores; numpy 2.4.6; commit 012345678.\n"
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
    monkeypatch.setattr(tables, "README", readme)
    monkeypatch.setattr("sys.argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit) as stopped:
        tables.main()
    assert stopped.value.code not in (0, None)
    assert readme.read_text() == README
