"""A gate of the user's: a command that sees the finished bundle before it takes its place.

What judges pictures of people is part of training (`bolid-eval --against`), and an export takes only the model from
there. So the gate is a process, not an import; it can be anybody's.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bolid_export.verify import VerificationError
from bolid_sdk.errors import InputError

PLACE = "{}"


@dataclass(frozen=True)
class CommandGate:
    """`command`, split as a shell would, with the bundle's folder for {}. Raises InputError for one without."""

    command: str

    def __post_init__(self) -> None:
        if PLACE not in self.command:
            raise InputError(f"--gate {self.command!r} never names the bundle; write {PLACE} where its folder belongs")
        try:
            shlex.split(self.command)
        except ValueError as error:
            raise InputError(f"--gate {self.command!r} is a command that no shell would take: {error}") from error

    def __call__(self, bundle: Path) -> dict[str, Any]:
        """What the command printed, an object in JSON, for the manifest. Raises VerificationError when it fails."""
        arguments = [argument.replace(PLACE, str(bundle)) for argument in shlex.split(self.command)]
        try:
            done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        except OSError as error:
            raise InputError(f"--gate cannot run {arguments[0]}: {error.strerror}") from error
        answer = _object(done.stdout)
        if done.returncode != 0:
            reason = _refusals(answer) or " ".join(done.stderr.split())[-300:] or "it gave no reason"
            raise VerificationError(
                f"the gate refused the bundle (exit code {done.returncode}), so nothing was written: {reason}"
            )
        return {"command": self.command} | answer


def _object(text: str) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _refusals(answer: Mapping[str, Any]) -> str:
    """Of the gates in an answer of bolid-eval."""
    failed = [
        f"{name} drops by {gate['drop']['value']} {gate['drop']['ci95']} of at most {gate['limit']}: {gate['state']}"
        for name, gate in answer.get("gates", {}).items()
        if not gate["passed"]
    ]
    return "; ".join(failed)
