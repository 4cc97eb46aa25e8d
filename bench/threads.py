"""How many threads arithmetic takes: the user's number, else one for each core that is ours.

Two threads on one physical core share its vector units, so they gain nothing in a matrix product
and wait for each other; more threads than a container's quota allows are stopped for a part of
every period, all of them. torch knows of neither.
"""

from __future__ import annotations

import os
from pathlib import Path

_ROOT = Path("/")


def count(asked: int | None) -> int:
    """Return the number of threads: ``asked``, else ``OMP_NUM_THREADS``, else cores that are ours.

    These are the physical cores among those the process may run on, at most as many as its
    control groups let it use (rounded down, at least one).
    """
    return asked or _variable() or usable(_ROOT)


def usable(root: Path) -> int:
    """Return the cores that are ours; ``root`` is where ``/sys`` and ``/proc`` are looked for."""
    if hasattr(os, "sched_getaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
    else:
        allowed = list(range(os.cpu_count() or 1))
    return max(1, int(min(physical(root, allowed), quota(root))))


def physical(root: Path, cpus: list[int]) -> int:
    """Return how many physical cores the logical ones ``cpus`` lie on; as many where unknown."""
    cores = set()
    for cpu in cpus:
        place = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        siblings = _text(place)
        cores.add(siblings if siblings is not None else f"cpu{cpu}")
    return len(cores)


def quota(root: Path) -> float:
    """Return the cores that the process' control groups grant; infinite where they set no limit.

    The least of a group and of those around it, in version 2 (``cpu.max``) or 1 (``cfs_quota``).
    """
    least = float("inf")
    for line in (_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        for top in _mounts(root, controllers):
            group = top / path.lstrip("/")
            # In a container the path may be the host's; then its own group is at the top.
            for folder in {top, group, *(p for p in group.parents if p.is_relative_to(top))}:
                least = min(least, _granted(folder))
    return least


def _mounts(root: Path, controllers: str) -> list[Path]:
    top = root / "sys/fs/cgroup"
    return [top, top / "unified"] if not controllers else [top / "cpu", top / controllers]


def _granted(group: Path) -> float:
    two = (_text(group / "cpu.max") or "").split()
    quota, period = two if len(two) == 2 else ("max", "1")
    if not two:
        quota = _text(group / "cpu.cfs_quota_us") or "-1"
        period = _text(group / "cpu.cfs_period_us") or "100000"
    if quota == "max" or int(quota) <= 0:
        return float("inf")
    return int(quota) / int(period)


def _variable() -> int | None:
    """Return what ``OMP_NUM_THREADS`` says, for the outermost level of threads."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except OSError:
        return None
