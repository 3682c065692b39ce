"""accelerate keeps its settings in the process; each test starts without them, in whatever order they run."""

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True, scope="module")
def fresh_accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
