"""When the borders of phases were crossed, and the seconds of each phase that follow.

Kernels of an accelerator run behind the host's back: the host leaves a phase long before the
device does. A border inside a step is therefore an event on the device's stream, which costs
microseconds and stops nothing; when it was crossed is known after the step has been waited for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

Clock = Callable[[], int]
"""Monotonic nanoseconds."""


class Stopwatch(Protocol):
    """Takes marks, which become times on the host's monotonic clock."""

    source: str
    """How times come about, for the record."""
    deferred: bool
    """Whether a mark is known only once the device has been waited for."""

    def anchor(self) -> None:
        """Tie the device's clock to the host's; called where the device has nothing to do."""
        ...

    def mark(self) -> Any:
        """Mark this moment of the work."""
        ...

    def nanoseconds(self, mark: Any) -> int:
        """Return when the mark was passed; a mark is asked for once."""
        ...


class HostClock:
    """For work that is done when the call returns: every mark is a time at once."""

    source = "time.monotonic_ns"
    deferred = False

    def __init__(self, clock: Clock = time.monotonic_ns) -> None:
        """Read ``clock``."""
        self._clock = clock

    def anchor(self) -> None:
        """Nothing: there is one clock."""

    def mark(self) -> int:
        """Return the time."""
        return self._clock()

    def nanoseconds(self, mark: int) -> int:
        """Return the time that was marked."""
        return mark


class DeviceEvents:
    """Marks are events on the current stream of an accelerator."""

    deferred = True

    def __init__(
        self,
        new: Callable[[], Any],
        record: Callable[[Any], object],
        source: str,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        """Use events made by ``new``, put on the stream by ``record``, again and again."""
        self._new, self._record, self.source, self._clock = new, record, source, clock
        self._free: list[Any] = []
        self._zero: Any = None
        self._zero_ns = 0

    def anchor(self) -> None:
        """Tie the clocks anew: an event's milliseconds are a float32, which wears out."""
        if self._zero is not None:
            self._free.append(self._zero)
        self._zero = self.mark()
        self._zero_ns = self._clock()

    def mark(self) -> Any:
        """Put an event on the stream."""
        event = self._free.pop() if self._free else self._new()
        self._record(event)
        return event

    def nanoseconds(self, mark: Any) -> int:
        """Return when the device passed the event; it has been waited for."""
        passed = self._zero_ns + round(float(self._zero.elapsed_time(mark)) * 1e6)
        self._free.append(mark)
        return passed


def stopwatch(device: str) -> Stopwatch:
    """Return the one that is right for work on ``device``."""
    where = torch.device(device)
    if where.type == "cpu":
        return HostClock()
    vendor = getattr(torch, where.type)  # torch.cuda (ROCm too), torch.xpu, torch.mps
    kind = vendor.event.Event if where.type == "mps" else vendor.Event

    def record(event: Any) -> None:
        # The stream is named: the run's device need not be the current one.
        event.record() if where.type == "mps" else event.record(vendor.current_stream(where))

    source = f"torch.{where.type} events on the current stream"
    return DeviceEvents(lambda: kind(enable_timing=True), record, source)


class PhaseTimes:
    """Adds up borders that come in order: each phase's seconds, whole and its own alone."""

    def __init__(self) -> None:
        """Begin with no phase open."""
        self._whole: dict[str, int] = {}
        self._own: dict[str, int] = {}
        self._open: list[tuple[str, int]] = []
        self._inside = [0]  # nanoseconds of the phases inside each open one; first, of none

    def enter(self, name: str, t_ns: int) -> tuple[str, int]:
        """Open a phase; return the innermost one from now on, and its depth."""
        self._open.append((name, t_ns))
        self._inside.append(0)
        return name, len(self._open) - 1

    def leave(self, t_ns: int) -> tuple[str, int]:
        """Close the innermost phase; return the one that it was in, ("end", -1) for none."""
        name, begin = self._open.pop()
        inside, whole = self._inside.pop(), t_ns - begin
        self._inside[-1] += whole
        self._whole[name] = self._whole.get(name, 0) + whole
        self._own[name] = self._own.get(name, 0) + whole - inside
        return (self._open[-1][0] if self._open else "end"), len(self._open) - 1

    def seconds(self) -> dict[str, float]:
        """Return the time spent in each phase and in those inside it, in s."""
        return {name: ns / 1e9 for name, ns in self._whole.items()}

    def own_seconds(self) -> dict[str, float]:
        """Return the time spent in each phase and in none inside it, in s."""
        return {name: ns / 1e9 for name, ns in self._own.items()}
