"""Memory that was freed and is still the process's."""

import ctypes
import sys


def give_back_memory() -> None:
    """Returns what is freed to the system, where the C library keeps it (glibc does, for blocks below 32 MB)."""
    if not sys.platform.startswith("linux"):
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)
