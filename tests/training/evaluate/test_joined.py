"""Rows measured later beside earlier ones."""

import pytest

from bolid_sdk.errors import InputError
from bolid_training.evaluate.joined import SAME, joined, read_comparison


def result(commit, *models, **setup):
    first, *others = models
    compared = {"metrics": commit, "minus_first_row": {"clip_score": 0.1}}
    rows = [{"model": first, "metrics": commit}, *({"model": model} | compared for model in others)]
    return {"rows": rows, "ceilings": 1, "setup": dict.fromkeys(SAME, 1) | {"commit": commit} | setup}


def test_rows_replace_those_of_their_names_and_say_of_which_commit_they_are():
    found = joined(result("new", "embedded", "added"), result("old", "bolid", "embedded", "pulid"))
    assert [(row["model"], row["metrics"], row["commit"]) for row in found["rows"]] == [
        ("bolid", "old", "old"),
        ("embedded", "new", "new"),
        ("pulid", "old", "old"),
        ("added", "new", "new"),
    ]
    assert found["setup"]["commit"] == "new"
    assert joined(result("newest", "pulid"), found)["rows"][1]["commit"] == "new"


def test_differences_are_to_the_first_row_of_the_table_as_it_is_now():
    def compared(now, earlier):
        return [row["model"] for row in joined(now, earlier)["rows"] if "minus_first_row" in row]

    earlier = result("old", "bolid", "pulid", "instantid")
    assert compared(result("new", "pulid", "added"), earlier) == ["instantid"]
    assert compared(result("old", "bolid", "added"), earlier) == ["pulid", "instantid", "added"]
    assert compared(result("new", "bolid", "added"), earlier) == ["added"]
    assert compared(result("new", "pulid", "bolid"), earlier) == []


@pytest.mark.parametrize("name", SAME)
def test_rows_of_other_people_or_judges_are_refused(name):
    with pytest.raises(InputError, match=f"{name} differ"):
        joined(result("new", "embedded", **{name: 2}), result("old", "bolid", "embedded"))


@pytest.mark.parametrize("text", [None, "{", "[]", '{"rows": [], "setup": {}}'])
def test_a_file_that_is_no_comparison_is_refused(tmp_path, text):
    file = tmp_path / "comparison.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=r"comparison\.json"):
        read_comparison(file)
