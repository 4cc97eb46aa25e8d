"""The one place with a deadline: calls into a driver that may never come back.

A call that hangs in the kernel can't be ended from outside. It runs in a thread of its own, the
caller stops waiting, and until it returns every further call is answered at once with the reason.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from bench.devices.answer import Unavailable

T = TypeVar("T")

THREAD_NAME = "nvml"
"""Of the thread that calls into the driver."""


@dataclass
class _Job:
    work: Callable[[], Any]
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: BaseException | None = None


class Guard:
    """Runs work in one thread, one piece at a time, and waits at most ``seconds`` for each.

    Costs two thread switches a call (tens of microseconds). Works on in a forked child.
    """

    def __init__(self, seconds: float, doing: Callable[[], str | None]) -> None:
        """Start nothing yet; ``doing`` says in a word what the thread is in the middle of."""
        self.seconds = seconds
        self._doing = doing
        self._late: _Job | None = None
        self._thread: threading.Thread | None = None
        self._begin_in_this_process()

    def __call__(self, work: Callable[[], T]) -> T | Unavailable:
        """Return what ``work`` returns, or that it does not answer.

        Raises:
            BaseException: whatever ``work`` raised.

        """
        if self._pid != os.getpid():
            self._begin_in_this_process()  # a fork copies no threads, and locks as they were
        with self._lock:
            if self._late is not None and not self._late.done.is_set():
                return self._hanging()
            self._late = None
            job = _Job(work)
            self._thread_alive()
            self._jobs.put(job)
            if not job.done.wait(self.seconds):
                self._late = job
                return self._hanging()
        if job.error is not None:
            raise job.error
        return job.result  # type: ignore[no-any-return]  # a job holds work of any type

    def stop(self) -> bool:
        """Let the thread end; return whether it has: where a call hangs, it ends after that."""
        if self._thread is None or self._pid != os.getpid():
            return True
        self._jobs.put(None)
        if self._late is None or self._late.done.is_set():
            self._thread.join(self.seconds)
        return not self._thread.is_alive()

    def _begin_in_this_process(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread = None
        self._late = None

    def _thread_alive(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            # A daemon: a call that hangs for good must not keep the process from ending.
            self._thread = threading.Thread(
                target=_serve, args=(self._jobs,), name=THREAD_NAME, daemon=True
            )
            self._thread.start()

    def _hanging(self) -> Unavailable:
        what = self._doing() or "the driver"
        return Unavailable(f"{what} did not answer within {self.seconds:g} s", flag="nvml_hangs")


def _serve(jobs: queue.SimpleQueue[_Job | None]) -> None:
    while (job := jobs.get()) is not None:
        try:
            job.result = job.work()
        except BaseException as error:
            job.error = error  # raised again in the thread that asked
        job.done.set()
