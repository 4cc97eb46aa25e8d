"""The watched process and its machine, as the kernel counts them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.devices.answer import Answer, Unavailable
from bench.sampler.readings import Clock, Reading, Stream, together

_BUSY = (1, 2, 3, 6, 7)  # of /proc/stat's "cpuN" lines: user, nice, system, irq, softirq


class Host:
    """Reads one process. On Linux from ``/proc``, 0.1 ms a reading; elsewhere through psutil."""

    def __init__(self, pid: int, clock: Clock = time.monotonic_ns, proc: Path = Path("/proc")):
        """Watch ``pid``; a number that a later process gets is not taken for it."""
        self._pid, self._clock, self._proc = pid, clock, proc
        self._files: dict[Path, int | OSError] = {}
        self._linux = sys.platform == "linux"
        self.cpus = _cpus_of(pid)
        """That the process may run on, when the watching began."""

    def streams(self, interval_seconds: float) -> list[Stream]:
        """Return the process at every interval, the machine once a second."""
        return [
            Stream("host", interval_seconds, self.process),
            Stream("machine", max(1.0, interval_seconds), self.machine),
        ]

    def full(self) -> list[Reading]:
        """Read everything."""
        return [*self.process(), *self.machine()]

    def process(self) -> list[Reading]:
        """Read bytes resident, those of them that no file backs, and seconds on a CPU."""
        t_ns = self._clock()
        found = self._from_proc() if self._linux else self._from_psutil()
        return together(t_ns, "host", "", found)

    def machine(self) -> list[Reading]:
        """Read seconds that the CPUs of the process were busy since boot, and what this took."""
        t_ns = self._clock()
        found: dict[str, Answer[Any] | Unavailable] = {
            "sampler_cpu_seconds": Answer(time.process_time(), "s", "time.process_time", "exact")
        }
        if self._linux:
            found["machine_busy_seconds"] = _busy(self._read(self._proc / "stat"), self.cpus)
        return together(t_ns, "host", "", found)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            if isinstance(file, int):
                os.close(file)
        self._files.clear()

    def _from_proc(self) -> dict[str, Answer[Any] | Unavailable]:
        statm = self._read(self._proc / str(self._pid) / "statm")
        stat = self._read(self._proc / str(self._pid) / "stat")
        spent: Any = stat
        if isinstance(stat, str):
            # The name, in parentheses, may hold anything; utime and stime are fields 14 and 15.
            fields = stat.rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
            spent = Answer(ticks / os.sysconf("SC_CLK_TCK"), "s", "/proc/PID/stat", "exact")
        return {**_resident(statm), "cpu_seconds": spent}

    def _from_psutil(self) -> dict[str, Answer[Any] | Unavailable]:
        # why here: on Linux the helper does without psutil.
        import psutil

        anonymous = Unavailable(f"{sys.platform} does not tell anonymous memory apart")
        try:
            process = psutil.Process(self._pid)
            rss, times = process.memory_info().rss, process.cpu_times()
        except psutil.Error as error:
            gone = Unavailable(f"process {self._pid} can't be read: {error}")
            return {"rss_bytes": gone, "rss_anon_bytes": anonymous, "cpu_seconds": gone}
        return {
            "rss_bytes": Answer(rss, "B", "psutil memory_info"),
            "rss_anon_bytes": anonymous,
            "cpu_seconds": Answer(times.user + times.system, "s", "psutil cpu_times", "exact"),
        }

    def _read(self, path: Path) -> str | Unavailable:
        # Opened once: a descriptor stays with the process it was opened for, a number does not.
        if path not in self._files:
            try:
                self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                self._files[path] = error
        file = self._files[path]
        if isinstance(file, OSError):
            return Unavailable(f"{path}: {file.strerror}")
        try:
            return os.pread(file, 1 << 17, 0).decode("ascii", errors="replace")
        except OSError as error:
            return Unavailable(f"{path}: {error.strerror}")


def _cpus_of(pid: int) -> frozenset[int]:
    every = frozenset(range(os.cpu_count() or 1))
    if not hasattr(os, "sched_getaffinity"):
        return every
    try:
        return frozenset(os.sched_getaffinity(pid))
    except OSError:
        return every


def _busy(stat: str | Unavailable, cpus: frozenset[int]) -> Answer[Any] | Unavailable:
    if isinstance(stat, Unavailable):
        return stat
    lines = dict(line.split(" ", 1) for line in stat.splitlines() if line.startswith("cpu"))
    ticks = [lines[name].split() for cpu in cpus if (name := f"cpu{cpu}") in lines]
    if not ticks:
        return Unavailable("/proc/stat tells nothing of the CPUs that the process may run on")
    busy = sum(int(of_one[i - 1]) for of_one in ticks for i in _BUSY)
    return Answer(busy / os.sysconf("SC_CLK_TCK"), "s", "/proc/stat", "exact")


def _resident(statm: str | Unavailable) -> dict[str, Answer[Any] | Unavailable]:
    names = ("rss_bytes", "rss_anon_bytes")
    if isinstance(statm, Unavailable):
        return dict.fromkeys(names, statm)
    # All pages, resident ones, and those of them that have a file or are shared.
    _, resident, shared = (int(n) * os.sysconf("SC_PAGE_SIZE") for n in statm.split()[:3])
    if not resident:
        return dict.fromkeys(names, Unavailable("/proc/PID/statm: the process has ended"))
    values = zip(names, (resident, resident - shared), strict=True)
    return {name: Answer(value, "B", "/proc/PID/statm") for name, value in values}
