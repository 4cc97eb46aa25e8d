"""Joules of CPU packages, counted by the processor itself (RAPL) and told by Linux.

Files under ``/sys/class/powercap``: ``intel-rapl:N`` is a package (AMD's too), counted in uJ up to
``max_energy_range_uj``, then from 0 again. Memory beside the package is not in it. Since 2020 only
root may read the counters (CVE-2020-8694).
"""

from __future__ import annotations

from pathlib import Path

from bench.devices.answer import Answer, Unavailable

POWERCAP = Path("/sys/class/powercap")


class Package:
    """One package: a counter that only rises, in J since it was opened."""

    def __init__(self, folder: Path, name: str, range_joules: float) -> None:
        """Made by :func:`packages`."""
        self.name = name
        self._file = folder / "energy_uj"
        self._range = range_joules
        self._last: float | None = None
        self._turns = 0
        self._first = 0.0

    def energy_joules(self) -> Answer[float] | Unavailable:
        """Read it; at least once per turn of the counter (minutes at full load), or it is lost."""
        try:
            now = int(self._file.read_text()) / 1e6
        except PermissionError:
            text = f"{self._file} can be read by root alone: sudo chmod a+r {self._file}"
            return Unavailable(text)
        except (OSError, ValueError) as error:
            return Unavailable(f"{self._file}: {error}")
        if self._last is None:
            self._first = now
        elif now < self._last:
            self._turns += 1
        self._last = now
        joules = now - self._first + self._turns * self._range
        return Answer(joules, "J", "RAPL energy_uj", "exact")


def packages(root: Path = POWERCAP) -> list[Package] | Unavailable:
    """Return the packages, or why there are none; parts of a package are not listed."""
    found = []
    for folder in sorted(root.glob("intel-rapl:*")):
        name = _text(folder / "name")
        # Others are inside a package ("core", "dram"), or hold all of them ("psys").
        if name is not None and name.startswith("package"):
            limit = _text(folder / "max_energy_range_uj")
            found.append(Package(folder, name, int(limit or 0) / 1e6))
    return found or Unavailable(f"no RAPL package under {root}: no such counter, or a machine "
                                "(virtual, in a container) that hides it")  # fmt: skip


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
