"""Several devices, one number: three answers to three questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.devices.answer import Unavailable


@dataclass(frozen=True)
class Peaks:
    """Peaks over devices, in bytes."""

    max_gpu: int
    """The largest on any one device: which card is needed."""
    peak_of_sum: int
    """The largest held at once on all of them: what the job took."""
    sum_of_peaks: int
    """The devices' peaks added up as if they came together: an upper bound."""


def peaks(rows: Sequence[Mapping[str, int | None]]) -> Peaks | Unavailable:
    """Return the three from aligned samples: a row a moment, device -> bytes.

    A moment at which a device could not be read has no sum, and is left out of ``peak_of_sum``.
    """
    devices = sorted({device for row in rows for device in row})
    seen = {d: [v for row in rows if (v := row.get(d)) is not None] for d in devices}
    silent = [device for device, values in seen.items() if not values]
    if silent or not devices:
        return Unavailable(f"no reading of {', '.join(silent) or 'any device'} in this window")
    sums = [
        sum(values)
        for row in rows
        if len(values := [v for d in devices if (v := row.get(d)) is not None]) == len(devices)
    ]
    if not sums:
        return Unavailable("the devices were never read at the same moment in this window")
    tops = [max(values) for values in seen.values()]
    return Peaks(max(tops), max(sums), sum(tops))
