"""The wheel carries what it must and works where the repository is not."""

import os
import subprocess
import sys
import tomllib
import venv
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PYPROJECT["tool"]["setuptools"]
FOLDERS = {package: ROOT / folder for package, folder in SETUPTOOLS["package-dir"].items()}
SOURCES = ("pyproject.toml", "README.md", "LICENSE", *SETUPTOOLS["package-dir"].values())

# PyPI refuses files above 100 MB, and nobody waits for them gladly.
MAX_WHEEL_BYTES = 100_000_000

GENERATE = """
import sys
from bolid_sdk import Generator
Generator()(sys.argv[1], "a person standing", seed=7).save("out.png")
assert not {"torch", "diffusers", "transformers"} & set(sys.modules)
"""


def shipped_files() -> set[str]:
    """Wheel paths of every file in the four folders that belongs to the product.

    Not the checkpoint (the wheel has the bundle that was made of it), nor bundles that a user has built.
    """
    shipped = set()
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*"):
            inside = path.relative_to(folder).parts
            private = inside[:1] == ("weights",) or (
                package == "bolid_engines" and inside[0] not in ("__init__.py", "avatar")
            )
            if path.is_file() and "__pycache__" not in inside and not private:
                shipped.add("/".join([package, *inside]))
    return shipped


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from links, because setuptools would reuse stale files of a build folder in the repository."""
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of a fresh environment that has the wheel and the runtime's dependencies."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, with_pip=True)
    bin_folder = environment / "bin"
    subprocess.run([bin_folder / "pip", "install", "-qq", wheel], cwd=environment, check=True)
    return bin_folder


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs outside the repository, without this environment's import path."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, check=False)


def test_every_package_is_listed():
    found = {
        ".".join([package, *path.parent.relative_to(folder).parts])
        for package, folder in FOLDERS.items()
        for path in folder.rglob("*.py")
    }
    assert set(SETUPTOOLS["packages"]) == found


def test_every_package_folder_has_an_init():
    missing = [
        path.parent
        for folder in FOLDERS.values()
        for path in folder.rglob("*.py")
        if not (path.parent / "__init__.py").exists()
    ]
    assert missing == []


@pytest.mark.parametrize("script", PYPROJECT["project"]["scripts"])
def test_every_console_script_loads(script):
    (entry,) = entry_points(group="console_scripts", name=script)
    assert callable(entry.load())


def test_the_changelog_knows_this_version():
    assert f"## {PYPROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
def test_the_wheel_carries_everything_and_nothing_else(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == shipped_files()
    assert wheel.stat().st_size < MAX_WHEEL_BYTES


@pytest.mark.slow
def test_the_installed_wheel_has_no_training_library(installed, tmp_path):
    probe = "import importlib.util as u; print(*[n for n in ('torch', 'diffusers', 'transformers') if u.find_spec(n)])"
    assert run(installed / "python", "-c", probe, cwd=tmp_path).stdout.split() == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "extra"), [("bolid-export", [], "export"), ("bolid-train", ["stage", "clip"], "train")]
)
def test_a_missing_extra_is_one_line_that_says_how_to_get_it(installed, tmp_path, script, arguments, extra):
    result = run(installed / script, *arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert f"pip install 'bolid-sdk[{extra}]'" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_the_installed_wheel_generates(installed, tmp_path):
    result = run(installed / "python", "-c", GENERATE, ROOT / "examples" / "ref.png", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_installed_command_generates(installed, tmp_path):
    picture = tmp_path / "out.png"
    result = run(
        installed / "bolid-infer", ROOT / "examples" / "ref.png", "a person sitting", "-o", picture, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_embedded_bundle_is_whole_in_the_wheel(installed, tmp_path):
    result = run(installed / "bolid-doctor", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
