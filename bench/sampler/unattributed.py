"""Device memory that nobody claims: what is used, less what the listed processes hold."""

from __future__ import annotations

from collections.abc import Callable


class Unattributed:
    """Compares used memory with the process lists around it.

    Lists are read less often than memory, and a run allocates between two of them: only what was
    used all the time from one list to the next, and stands in neither, is nobody's.
    """

    def __init__(self, running: Callable[[int], bool]) -> None:
        """Begin with nothing; ``running`` tells whether the run was on at a time."""
        self._running = running
        self._least: float | None = None
        self._held: float | None = None
        self._claimed = 0.0
        self._idle: float | None = None
        self.largest: float | None = None
        """Most bytes that nobody claimed, above what nobody claimed before the run; or None."""

    def used(self, t_ns: int, value: float) -> None:
        """Take the bytes used of the device."""
        self._least = value if self._least is None else min(value, self._least)

    def held(self, t_ns: int, value: float) -> None:
        """Take the bytes that the run holds, of a process list."""
        self._held = value

    def others(self, t_ns: int, value: float) -> None:
        """Take the bytes that the others hold, which ends what is read of that list."""
        used, self._least = self._least, None
        held, self._held = self._held, None
        before, self._claimed = self._claimed, value + (held or 0.0)
        if used is None:
            return
        nobodys = used - max(self._claimed, before)
        if self._idle is None:
            self._idle = nobodys  # before the run has a context: the driver's own, and hidden ones
        elif held is not None and self._running(t_ns):
            self.largest = max(nobodys - self._idle, self.largest or 0.0)
