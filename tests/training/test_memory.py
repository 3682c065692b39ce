"""Freed memory is used again without the kernel's help."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, numpy as np
from bolid_training.memory import keep_freed_memory
assert {call}
touch = lambda: np.ones(8_000_000)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20): touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(call):
    run = subprocess.run([sys.executable, "-c", FAULTS.format(call=call)], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_large_arrays_stay_in_the_process():
    assert faults("keep_freed_memory()") < 0.1 * faults("True")
