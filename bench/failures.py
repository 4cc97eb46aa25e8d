"""What went wrong, as a status and a sentence. Out of memory is a result, not an accident."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from bench.records import Status, UserError
from zo_core import NonFiniteLoss
from zo_core.base import Unsupported

_UNITS = {"B": 1, "bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}

# torch's CPU allocator, torch's CUDA allocator, numpy.
_ASKED = re.compile(
    r"(?:tried to allocate|Tried to allocate|Unable to allocate) ([\d.]+) (bytes|B|[KMGT]iB)"
)
_OUT_OF_MEMORY = re.compile(
    r"can't allocate memory|Cannot allocate memory|bad_alloc|out of memory|Unable to allocate"
    r"|_STATUS_ALLOC_FAILED|can't start new thread",
    re.IGNORECASE,
)


def exit_code_of(work: Callable[[], object]) -> int:
    """Do the work of a measuring process; return its exit code, an error being one line."""
    try:
        work()
    except (UserError, Unsupported, NonFiniteLoss) as error:
        print(error, file=sys.stderr)
        return error.exit_code if isinstance(error, UserError) else 3
    except MemoryError as error:
        print(first_line(error) or "out of memory", file=sys.stderr)
        return 4
    return 0


def status_of(error: BaseException) -> Status:
    """Say what kind of end an exception is."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "out_of_memory"
    if isinstance(error, RuntimeError | OSError) and _OUT_OF_MEMORY.search(str(error)):
        return "out_of_memory"
    return "unsupported" if isinstance(error, UserError | Unsupported) else "failed"


def bytes_requested(error: BaseException) -> int | None:
    """Return the size of the refused allocation, where the message tells it.

    Exact from torch's CPU allocator; from its CUDA allocator rounded to a hundredth of its unit.
    """
    found = _ASKED.search(str(error))
    return round(float(found[1]) * _UNITS[found[2]]) if found else None


def bytes_free(limit: int | None, in_use: int | None, on_device: int | None) -> int | None:
    """Return what could still be had: under the limit, and on the device; None if unknown."""
    under = None if limit is None or in_use is None else max(0, limit - in_use)
    known = [b for b in (under, on_device) if b is not None]
    return min(known) if known else None


def first_line(error: BaseException) -> str:
    """Return the message's first line, or the class where there is none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def of_exit(returncode: int, killed_by_kernel: bool) -> tuple[Status, str]:
    """Say how a run ended that wrote no record of its own.

    Args:
        returncode: of the process; negative for a signal.
        killed_by_kernel: whether the kernel's out-of-memory killer struck.

    """
    if returncode == -signal.SIGKILL and killed_by_kernel:
        return "out_of_memory", "the kernel's out-of-memory killer ended the process"
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return "failed", f"the process was ended by {name}; see the log"
    return "failed", f"the process exited with code {returncode} and no record; see the log"


def out_of_memory_kills() -> int | None:
    """Return how often the kernel's out-of-memory killer has struck, if it says."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
