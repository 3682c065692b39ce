"""Commands whose libraries are optional end in one line about what to install, not in a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click


@contextmanager
def requires_extra(extra: str) -> Iterator[None]:
    """Ends the process with exit code 2 and the command that helps when a third-party module is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("bolid_"):
            raise
        click.echo(f"{error.name} is not installed: pip install 'bolid-sdk[{extra}]'", err=True)
        raise SystemExit(2) from None
