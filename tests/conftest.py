"""What several test files share: where the repository is, and the embedded bundle."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def embedded_bundle() -> Path:
    """engines/avatar, the bundle that `Generator()` opens."""
    return ROOT / "engines" / "avatar"
