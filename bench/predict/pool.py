"""Jobs on several processes; one that dies or takes too long costs its own job, and no other's."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Generic, Literal, TypeVar

J = TypeVar("J")
R = TypeVar("R")

_JOBS_OF_A_PROCESS = 40  # fake tensors leave little behind; a fresh one leaves nothing


Why = Literal["died", "too long"]


def _never(result: object) -> bool:
    return False


@dataclass(frozen=True)
class How(Generic[J, R]):
    """What is done: by functions of a module, since processes are spawned."""

    work: Callable[[J], R]
    """Makes a result, and raises nothing: an exception here ends its process."""
    begin: Callable[[], None]
    """Called first in every process."""
    lost: Callable[[J, Why], R]
    """Makes the result of a job whose process died or took too long; called here."""
    spoils: Callable[[R], bool] = _never
    """Whether a result leaves its process unfit for another job; called here."""


def results(how: How[J, R], jobs: Sequence[J], *, workers: int, seconds: float) -> Iterator[R]:
    """Yield the result of each job in order, made by up to ``workers`` processes at a time.

    Args:
        how: what is done with a job.
        jobs: what to do.
        workers: processes.
        seconds: that one job may take; its process is ended then.

    """
    found: dict[int, R] = {}
    waiting = iter(range(len(jobs)))
    processes = [_Process(how) for _ in range(min(workers, len(jobs)))]
    try:
        for number in range(len(jobs)):
            while number not in found:
                for at, process in enumerate(processes):
                    if process.job is None and (job := next(waiting, None)) is not None:
                        if process.worn:
                            process.end()
                            processes[at] = process = _Process(how)
                        process.take(job, jobs[job], seconds)
                found.update(_next(processes))
            yield found.pop(number)
    finally:
        for process in processes:
            process.end()


class _Process(Generic[J, R]):
    """A process and what it is at."""

    def __init__(self, how: How[J, R]) -> None:
        """Start it."""
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, how), daemon=True)
        self.process.start()
        theirs.close()
        self.how = how
        self.job: tuple[int, J] | None = None
        self.due = math.inf
        self.worn = False
        self._taken = 0

    def take(self, number: int, job: J, seconds: float) -> None:
        """Hand over a job."""
        self.job, self.due = (number, job), time.monotonic() + seconds
        self._taken += 1
        with suppress(OSError):  # it is dead: reading tells
            self.pipe.send(job)

    def result(self) -> tuple[int, R]:
        """Return the number and result of its job, which is done, lost or too late."""
        assert self.job is not None
        (number, job), self.job = self.job, None
        self.worn = True  # unless it answers
        if not self.pipe.poll():
            return number, self.how.lost(job, "too long")
        try:
            made: R = self.pipe.recv()
        except (EOFError, OSError):
            return number, self.how.lost(job, "died")
        self.worn = self._taken >= _JOBS_OF_A_PROCESS or self.how.spoils(made)
        return number, made

    def end(self) -> None:
        """End it, whatever it is at."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _next(processes: Sequence[_Process[J, R]]) -> dict[int, R]:
    """Wait until a process is done, or must be, and return the results there are by number."""
    busy = [process for process in processes if process.job is not None]
    left = min(process.due for process in busy) - time.monotonic()
    ready = wait([process.pipe for process in busy], max(left, 0.0))
    now = time.monotonic()
    return dict(p.result() for p in busy if p.pipe in ready or now >= p.due)


def _serve(pipe: Connection, how: How[J, R]) -> None:
    """Do the jobs that come, until nobody is there to send one."""
    how.begin()
    with suppress(EOFError, BrokenPipeError):
        while True:
            pipe.send(how.work(pipe.recv()))
