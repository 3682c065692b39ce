"""Rows measured now beside rows measured earlier, on the same people by the same judges."""

import json
from pathlib import Path
from typing import Any

from bolid_sdk.errors import InputError

SAME = ("judges", "seed", "split", "pictures", "people", "identity_judged", "references_refused", "protocol")
"""What rows of one table have in common, by their names in `setup`."""


def read_comparison(file: Path) -> dict[str, Any]:
    """What `bolid-eval compare` has written. Raises InputError."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not (isinstance(found, dict) and found.get("rows") and "setup" in found):
        raise InputError(f"{file} is no comparison; expected a file that `bolid-eval compare` has written")
    return found


def check_same(setup: dict[str, Any], earlier: dict[str, Any]) -> None:
    """Raises InputError where people, prompts or judges are not those of the earlier rows."""
    if different := [name for name in SAME if setup.get(name) != earlier["setup"].get(name)]:
        raise InputError(
            f"the earlier rows cannot stand beside these: {', '.join(different)} differ; measure all rows together"
        )


def joined(now: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
    """`earlier` with the rows of `now` in the place of those of the same names, or after all others.

    Each row says of which commit it is. Differences are to the table's first row as it is now; those to another, or to
    what it was before, are left out.
    Raises InputError as `check_same` does.
    """
    check_same(now["setup"], earlier)
    measured = {row["model"]: _dated(row, now) for row in now["rows"]}
    kept = {row["model"]: _dated(row, earlier) for row in earlier["rows"]}
    first = earlier["rows"][0]
    if now["rows"][0]["model"] != first["model"]:
        _forget_differences(measured)
    if measured.get(first["model"], first)["metrics"] != first["metrics"]:
        _forget_differences(kept)
    return now | {"rows": list((kept | measured).values())}


def _forget_differences(rows: dict[str, dict[str, Any]]) -> None:
    for row in rows.values():
        row.pop("minus_first_row", None)


def _dated(row: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
    return {"commit": result["setup"]["commit"]} | row
