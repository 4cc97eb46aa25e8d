"""Builds the library that counts a process' heap, and starts memory runs with it.

The counter has to be in place before the first allocation, so it is preloaded (``LD_PRELOAD``)
into the run's process; ``bench.trackers.host_tensors`` reads it there. The system's C compiler
builds it on first use, into the user's cache; it is tried before it is kept.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.trackers import Unavailable

NOT_COUNTED = "ZOMETER_HEAP_NOT_COUNTED"
"""Variable that tells the run's process why its heap is not counted, though it should be."""

_SOURCE = Path(__file__).with_name("heap_counter.c")
_FLAGS = ("-std=c11", "-O2", "-fPIC", "-shared", "-fno-builtin")
_COMPILERS = ("cc", "gcc", "clang")
_TRIAL = "import ctypes; assert ctypes.CDLL(None).zometer_heap_peak() > 0"
_SECONDS = 60.0


def preloaded(variables: dict[str, str]) -> dict[str, str]:
    """Return ``variables`` for a process whose heap is to be counted.

    What the user preloads stays, behind the counter: an allocator of theirs goes on to serve,
    and is counted. The counter takes itself out of the variable when it starts, so that programs
    started by the run are left alone. Where it can't be had, ``NOT_COUNTED`` says why.
    """
    try:
        return _first(library(), variables)
    except Unavailable as error:
        return {**variables, NOT_COUNTED: str(error)}


def library() -> Path:
    """Return the library; built, tried and put into the cache if it is not there yet.

    Several processes may call it at once: each builds its own file, and the last rename wins.

    Raises:
        Unavailable: not Linux, no compiler, no place for it, or it does not work here.

    """
    if sys.platform != "linux":
        raise Unavailable(f"the heap is counted on Linux alone; this is {sys.platform}")
    path = _folder() / f"heap_counter-{_digest()}.so"
    if any(c in str(path) for c in " :$"):
        raise Unavailable(f"LD_PRELOAD can't name {path}: set XDG_CACHE_HOME to a plainer path")
    if not path.is_file():
        _build_into(path)
    return path


def _folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(base) / "zometer" / "preload").absolute()


def _digest() -> str:
    """Stand for the source and for what it was built on: homes are shared between machines."""
    libc = "CS_GNU_LIBC_VERSION"
    of = [platform.machine(), (libc in os.confstr_names and os.confstr(libc)) or "", *_FLAGS]
    return hashlib.sha256("\0".join(of).encode() + _SOURCE.read_bytes()).hexdigest()[:16]


def _compiler() -> list[str]:
    asked = shlex.split(os.environ.get("CC", ""))
    if asked and shutil.which(asked[0]):
        return asked
    for name in _COMPILERS:
        if shutil.which(name):
            return [name]
    raise Unavailable(
        f"it is counted by a small C library, and none of {', '.join(_COMPILERS)} is on the PATH: "
        "install a C compiler (Debian, Ubuntu: gcc and libc6-dev)"
    )


def _build_into(path: Path) -> None:
    compiler = _compiler()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="build-", dir=path.parent) as folder:
            built = Path(folder) / path.name
            _run([*compiler, *_FLAGS, "-o", str(built), str(_SOURCE), "-ldl"], dict(os.environ))
            _run([sys.executable, "-S", "-c", _TRIAL], _first(built, dict(os.environ)))
            built.replace(path)
    except OSError as error:
        raise Unavailable(
            f"can't build it into {path.parent}: {error.strerror}; set XDG_CACHE_HOME"
        ) from error


def _run(command: list[str], variables: dict[str, str]) -> None:
    variables["LC_ALL"] = "C"
    try:
        subprocess.run(
            command, env=variables, capture_output=True, text=True, check=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"{command[0]} took more than {_SECONDS:g} s") from error
    except subprocess.CalledProcessError as error:
        said = error.stderr.splitlines() or ["no reason given"]
        why = next((line for line in said if "error" in line.lower()), said[-1])
        raise Unavailable(f"{command[0]} ended with {error.returncode}: {why}") from error


def _first(path: Path, variables: dict[str, str]) -> dict[str, str]:
    users = variables.get("LD_PRELOAD", "")
    return {**variables, "LD_PRELOAD": f"{path}:{users}" if users else str(path)}
