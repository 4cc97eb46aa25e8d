"""What a run's trace says about its phases: numbers, and doubts about them."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.devices.answer import doubt
from bench.sampler import doubts, notes, numbers, trace, used
from bench.sampler.collected import Shape, collect
from bench.sampler.found import Sampled
from bench.sampler.windows import Window

_SETTLE_SECONDS = 0.5


def summarise(folder: Path, windows: Sequence[Window], *, timing: bool = False) -> Sampled:
    """Return the numbers and doubts of a run, also of one that died.

    Args:
        folder: of the run.
        windows: every stretch in which a phase was open.
        timing: whether its times are what the run is for. A power cap is then suspect, and so is a
            busy host.

    Returns:
        Nothing where the run was not sampled. Numbers and doubts are of the devices that the run
        used; the trace keeps all that it could see. Reads the trace once for one GPU, else twice:
        about ten seconds each for an hour of readings of one GPU every 50 ms.

    """
    said = _settled(folder)
    if not said and not (folder / trace.TRACE).exists():
        return Sampled()
    if failed := said.get("failed"):
        missing = numbers.no_devices(str(failed)) if said.get("nvml") else []
        return Sampled(missing, [doubt("sampler_died", str(failed))])
    if not windows:
        return Sampled()
    shape = Shape(windows, float(said.get("interval_seconds", 0.05)))
    devices = used.devices(folder / trace.TRACE, shape, said)
    said = used.of_those(said, devices)
    rows = trace.read(folder / trace.TRACE)
    run = collect((r for r in rows if r.source != "nvml" or r.device in devices), shape)
    reasons = numbers.Reasons(said.get("refusals", []), shape)
    late = notes.LATE if said.get("late") else None
    found = [*numbers.gaps(run.host_gaps, "host"), *numbers.host_joules(run, _why_no_rapl(said))]
    of_energy: list[Any] = []
    if devices:
        found += numbers.memory(run, devices, reasons, late)
        found += numbers.over_devices(run, devices)
        joules, of_energy = numbers.joules(run, devices, reasons)
        found += [*joules, *numbers.busy(run, devices, reasons)]
        for uuid, series in run.devices.items():
            found += numbers.gaps(series.gaps, "nvml memory", uuid)
    elif said.get("nvml"):
        down = said.get("unavailable") or {}
        found += numbers.no_devices(down.get("reason") or "the sampler read no device")
    return Sampled(found, doubts.of_run(run, said, of_energy, timing))


def _why_no_rapl(said: dict[str, Any]) -> str | None:
    down = said.get("rapl")
    return None if down is None else str(down["reason"])


def _settled(folder: Path) -> dict[str, Any]:
    """Return the notes, once the helper has ended: whoever ends a run is quicker than it."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        said = notes.read(folder)
        if not said or said.get("ended") or not _alive(said.get("sampler_pid")):
            return said
        if time.monotonic() > deadline:
            return said
        time.sleep(0.02)


def _alive(pid: int | None) -> bool:
    if pid is None or pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
