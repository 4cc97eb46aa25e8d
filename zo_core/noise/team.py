"""The threads that torch works with, for kernels of ours: OpenMP's, where torch is built on that.

OpenMP's threads look out for their next work for some milliseconds before they sleep, and hold
their cores meanwhile. Threads of our own, between two products of torch, would share the cores
with those: two of them were slower than one. As a team of OpenMP's they are awake and in place,
and torch finds them so again. The interpreter and its lock are not asked: a thread that waits for
the lock sleeps, and it takes longer to wake it than a small matrix takes.

A team is done when its last thread is. Where more of them want to run than there are cores, it
waits for one that is kept waiting (milliseconds a time), and threads of our own are better.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

_PROCESS = os.getpid()
_CROWD = 1.5  # threads a core that want to run


def possible() -> bool:
    """Whether torch's threads are OpenMP's, several, and were not lost by a fork.

    GNU's OpenMP does not survive a fork.
    """
    return torch.get_num_threads() > 1 and os.getpid() == _PROCESS and _parallel() is not None


def available() -> bool:
    """Whether a team is possible, and can have its cores just now."""
    return possible() and not _crowded(int(time.monotonic()))


@functools.lru_cache(maxsize=1)
def _crowded(second: int) -> bool:
    """Look at the load of the last minute, once a second."""
    try:
        load = os.getloadavg()[0]
    except OSError:  # some sandboxes do not tell
        return False
    return load > _CROWD * (os.cpu_count() or 1)


def run(kernel: int, data: int, threads: int) -> None:
    """Let ``threads`` threads call the C function ``void kernel(void *data)`` at that address.

    A team may be smaller than it is asked to be.
    """
    _parallel()(kernel, data, threads, 0)


@functools.cache
def _parallel() -> Any:
    """Return what starts a team in the very OpenMP library that torch is linked to, or None."""
    if sys.platform != "linux" or "backend: OpenMP" not in torch.__config__.parallel_info():
        return None
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        parallel = library.GOMP_parallel  # looked for in what that library itself needs
    except (OSError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel
