"""What the runtime takes on a disk: the SDK without extras, its dependencies and the embedded engines.

    python benchmarks/footprint.py           benchmarks/results/footprint.json

pip installs the wheel of this repository and what it needs into a folder that nothing else is in.
"""

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from bolid_training.evaluate.provenance import commit

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "footprint.json"
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "bolid_sdk", "engines", "export", "training")
WRITTEN_OUT = 1.0
"""Megabytes from which on a package is named."""


def install(folder: Path) -> None:
    """From links, because setuptools leaves a build folder where it builds, and would find it there the next time."""
    with tempfile.TemporaryDirectory(prefix="bolid-source-") as name:
        for part in SOURCES:
            (Path(name) / part).symlink_to(ROOT / part)
        options = ["--quiet", "--no-warn-conflicts", "--target", folder]
        subprocess.run([sys.executable, "-m", "pip", "install", *options, name], check=True)


def sizes(folder: Path) -> dict[str, float]:
    """Megabytes (10^6 bytes) of everything on the top level, the largest first; hard links are counted once."""
    seen: set[tuple[int, int]] = set()
    found: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if path.is_dir() or (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        top = path.relative_to(folder).parts[0]
        found[top] = found.get(top, 0) + status.st_size
    return {name: size / 1e6 for name, size in sorted(found.items(), key=lambda item: -item[1])}


def summary(found: dict[str, float]) -> dict[str, object]:
    named = {name: round(size, 1) for name, size in found.items() if size >= WRITTEN_OUT}
    return {"total_mb": round(sum(found.values()), 1), "packages_mb": named}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="bolid-footprint-") as name:
        install(Path(name))
        found = summary(sizes(Path(name)))
    setup = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "commit": commit(),
    }
    RESULTS.write_text(json.dumps({**found, "setup": setup}, indent=2) + "\n")
    print(f"{found['total_mb']} MB, {found['packages_mb']}")


if __name__ == "__main__":
    main()
