"""README.md is run: its Python as one script, its commands in a shell, its tables against the results they show.

A comment before a block says when running it would take too long: `<!-- check: help -->` looks its options up in the
command's own help, `<!-- check: install -->` its extras in pyproject.toml.
"""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SCRIPTS = PROJECT["scripts"]
BLOCK = re.compile(r"(?:<!-- check: (?P<check>\w+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)```", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Block:
    language: str
    check: str
    text: str
    line: int

    @property
    def commands(self) -> list[list[str]]:
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


BLOCKS = [
    Block(
        language=match["language"],
        check=match["check"] or "run",
        text=match["text"],
        line=README[: match.start()].count("\n") + 1,
    )
    for match in BLOCK.finditer(README)
]


def blocks(language: str, check: str) -> list:
    chosen = [block for block in BLOCKS if (block.language, block.check) == (language, check)]
    return [pytest.param(block, id=f"line {block.line}") for block in chosen]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like the repository to the commands, so that what they write stays out of it."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def run(*command: str, cwd: Path) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        command, cwd=cwd, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{shlex.join(command)}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def test_every_block_is_checked_somehow():
    assert {(block.language, block.check) for block in BLOCKS} == {
        ("python", "run"),
        ("bash", "run"),
        ("bash", "help"),
        ("bash", "install"),
    }


@pytest.mark.slow
def test_the_python_runs(checkout):
    """One script, because later blocks use the names of earlier ones."""
    script = "\n".join(block.text for block in BLOCKS if block.language == "python")
    run(sys.executable, "-c", script, cwd=checkout)
    assert (checkout / "out.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("bash", "run"))
def test_the_commands_run(block, checkout):
    run("bash", "-euo", "pipefail", "-c", block.text, cwd=checkout)


@pytest.mark.slow
@pytest.mark.parametrize("block", blocks("bash", "help"))
def test_the_options_exist(block, checkout):
    used = defaultdict(set)
    for program, *words in block.commands:
        assert program in SCRIPTS
        subcommand = tuple(word for word in words[:1] if not word.startswith("-"))
        used[program, *subcommand] |= {word for word in words if word.startswith("-")}
    for command, options in used.items():
        known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", run(*command, "--help", cwd=checkout)))
        assert options <= known, f"{' '.join(command)} knows {sorted(known)}"


@pytest.mark.parametrize("block", blocks("bash", "install"))
def test_the_extras_exist(block):
    for words in block.commands:
        assert words[:2] == ["pip", "install"]
        name, _, extras = words[2].rstrip("]").partition("[")
        assert name == PROJECT["name"]
        assert set(filter(None, extras.split(","))) <= set(PROJECT["optional-dependencies"])


def test_the_make_targets_exist():
    targets = re.findall(r"`make (\w+)`", README)
    assert targets
    run("make", "--dry-run", *targets, cwd=ROOT)


def test_the_linked_files_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_tables_show_the_results():
    run(sys.executable, str(ROOT / "benchmarks" / "tables.py"), "--check", cwd=ROOT)


def test_the_commands_table_is_complete():
    """Whoever adds a command tells the reader."""
    assert [script for script in SCRIPTS if script not in README] == []
