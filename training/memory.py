"""How the C library treats memory that a step frees and the next one needs again."""

import ctypes
import sys

# <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tells glibc to keep what is freed, instead of giving every large block back to the system. False elsewhere.

    On CPUs a step allocates and frees the same activations over and over. Given back, their pages are cleared by the
    kernel each time: 40 % of the processor time of an autoencoder at full resolution (docs/architecture.md).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # not glibc
        return False
    settings = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 2**28}
    return all(mallopt(parameter, value) for parameter, value in settings.items())
