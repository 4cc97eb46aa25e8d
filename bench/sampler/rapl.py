"""CPU packages as a source of the loop."""

from __future__ import annotations

import time
from pathlib import Path

from bench.devices import rapl
from bench.devices.answer import Unavailable
from bench.sampler.readings import Clock, Reading, Stream, together


class Rapl:
    """Reads all packages."""

    def __init__(self, clock: Clock = time.monotonic_ns, root: Path = rapl.POWERCAP) -> None:
        """Look for packages; ``unavailable`` says why there are none."""
        found = rapl.packages(root)
        self.unavailable = found if isinstance(found, Unavailable) else None
        self._packages = [] if isinstance(found, Unavailable) else found
        self._clock = clock
        for package in self._packages:
            if self.unavailable is None and isinstance(
                answer := package.energy_joules(), Unavailable
            ):
                self.unavailable = answer

    def streams(self, interval_seconds: float) -> list[Stream]:
        """Return the one stream; each reading wakes a package, so not faster than 0.1 s."""
        if self.unavailable is not None:
            return []
        return [Stream("rapl", max(0.1, interval_seconds), self.full)]

    def full(self) -> list[Reading]:
        """Read every package's counter; nothing where one of them can't be read at all."""
        if self.unavailable is not None:
            return []
        t_ns = self._clock()
        return [
            reading
            for package in self._packages
            for reading in together(
                t_ns, "rapl", package.name, {"energy_joules": package.energy_joules()}
            )
        ]
