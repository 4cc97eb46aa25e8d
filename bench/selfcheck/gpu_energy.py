"""Joules and seconds of a GPU under load: counter against polled power, and what calls cost."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bench.devices import energy
from bench.devices.answer import Answer, Unavailable
from bench.devices.gauges import Found
from bench.devices.nvml import GAUGES, Device
from bench.selfcheck.verdict import Verdict, broken, judge, missing, told
from bench.selfcheck.work import Work

SECONDS = energy.STEPS * energy.STEP_SECONDS + 1.0
"""Of work: as long as a published energy needs, and a second to get going."""

_POLL_SECONDS = 0.05
_REPEATS = 20
_LOAD_PERCENT = 25.0  # the driver looks 1 to 6 times a second, and work comes in pieces


@dataclass
class _Log:
    """What was read while the device worked: (seconds, value) each."""

    watts: list[tuple[float, float]] = field(default_factory=list)
    joules: list[tuple[float, float]] = field(default_factory=list)
    busy: list[float] = field(default_factory=list)
    worked: float = 0.0
    """Seconds in which the device had something to do."""


def verdicts(
    device: Device, work: Work, label: str, clock: Callable[[], float] = time.monotonic
) -> Iterator[Verdict]:
    """Work for some seconds, and judge what the meters of energy, power and load say of them.

    Args:
        device: to ask.
        work: begun.
        label: names the device in what is printed.
        clock: in s; a test has its own.

    """
    idle = _watts(device.read(("power",)))
    work.busy(1.0)  # power rises for a while after an idle stretch
    log = _Log()
    begin, start = device.energy_joules(), clock()
    _poll(device, log, clock() - start)
    while (now := clock() - start) < SECONDS:
        work.busy(_POLL_SECONDS)
        log.worked += clock() - start - now
        _poll(device, log, clock() - start)
    end, seconds = device.energy_joules(), clock() - start
    found = energy.window(begin, end, seconds, log.watts)
    yield from _energy(found, seconds, label)
    yield from _counter_steps(log, label)
    yield from _power(idle, log, not device.others(), label)
    yield _load(log, log.worked / seconds, label)


def latencies(device: Device, label: str) -> Iterator[Verdict]:
    """Return what each subject costs to read, as the median over some readings."""
    for subject in (*GAUGES, "violations", "ecc"):
        taken = []
        for _ in range(_REPEATS):
            start = time.perf_counter()
            found = device.read((subject,))
            taken.append(time.perf_counter() - start)
        lacking = [a for a in found.values() if isinstance(a, Unavailable)]
        meter = f"NVML calls, {label}"
        if len(lacking) == len(found):
            yield missing(meter, subject, lacking[0].reason)
        else:
            text = f"median of {_REPEATS}; slowest {1e6 * max(taken):.0f} us"
            yield told(meter, subject, statistics.median(taken), "s", text)


def _poll(device: Device, log: _Log, at: float) -> None:
    found = device.read(("power", "energy", "load"))
    for answer, kept in ((_watts(found), log.watts), (found["energy_joules"], log.joules)):
        if isinstance(answer, Answer):
            kept.append((at, float(answer.value)))
    percent = found["kernel_time_percent"].value
    if percent is not None:
        log.busy.append(float(percent))


def _watts(found: Found) -> Answer[float] | Unavailable:
    """Return the power at once, or where a board has no such reading its average."""
    instant = found["power_instant_watts"]
    return instant if isinstance(instant, Answer) else found["power_watts"]


def _energy(found: energy.Energy, seconds: float, label: str) -> Iterator[Verdict]:
    meter, case = f"NVML energy counter, {label}", f"{seconds:.1f} s of matrix products"
    for doubt in found.doubts:
        if doubt.name == "energy_counter_reset":
            yield broken(meter, case, doubt.text)
            return
    if isinstance(found.counted, Unavailable):
        yield missing(meter, case, found.counted.reason)
        return
    if isinstance(found.polled, Unavailable):
        text = f"nothing to compare it with: {found.polled.reason}"
        yield told(meter, case, found.counted.value, "J", text)
        return
    tolerance = energy.DIFFERENCE * max(found.counted.value, found.polled.value)
    case = f"{case}, against polled power"
    yield judge(meter, case, found.polled.value, found.counted.value, tolerance, "J")


def _counter_steps(log: _Log, label: str) -> Iterator[Verdict]:
    moves = itertools.pairwise(log.joules)
    times = [at for (_, before), (at, now) in moves if now != before]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    if gaps:
        text = f"at most; it was read every {1e3 * _POLL_SECONDS:.0f} ms"
        meter = f"NVML energy counter, {label}"
        yield told(meter, "time between its steps", statistics.median(gaps), "s", text)


def _power(
    idle: Answer[float] | Unavailable, log: _Log, alone: bool, label: str
) -> Iterator[Verdict]:
    meter, case = f"NVML power, {label}", "under load"
    if isinstance(idle, Unavailable):
        yield missing(meter, case, idle.reason)
    elif log.watts:
        loaded = statistics.median(watts for _, watts in log.watts)
        if loaded <= idle.value and alone:
            text = f"{loaded:.0f} W under load, {idle.value:.0f} W before it"
            yield broken(meter, case, text)
        else:
            yield told(meter, case, loaded, "W", f"{idle.value:.0f} W before it")


def _load(log: _Log, share: float, label: str) -> Verdict:
    """Judge the time in which a kernel ran, by what the device was given to do."""
    meter, case = f"NVML utilisation, {label}", "under load"
    if not log.busy:
        return missing(meter, case, "not read once")
    return judge(meter, case, 100 * share, statistics.median(log.busy), _LOAD_PERCENT, "%")
