"""The numbers of a run that come from its trace."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping
from typing import Any

from bench.devices import energy, sums
from bench.devices.answer import Answer, Doubt, Unavailable
from bench.sampler.collected import ENERGY_PHASES, Collected, DeviceSeries, Shape
from bench.sampler.found import Found, Quality
from bench.sampler.series import Gaps, Spread
from bench.sampler.windows import RUN

_MEMORY = "nvmlDeviceGetMemoryInfo, sampled"
_LISTS = "NVML process list, sampled"
_COUNTER = "nvmlDeviceGetTotalEnergyConsumption"
_SLACK_SECONDS, _SLACK_SHARE = 0.25, 0.02  # of a phase, that no reading covers
_PER_DEVICE = {
    "device_used_peak_bytes": "device_used_bytes",
    "device_used_baseline_bytes": "device_used_bytes",
    "device_process_peak_bytes": "process_used_bytes",
    "device_process_accounting_peak_bytes": "accounting_peak_bytes",
    "temperature_start_celsius": "temperature_celsius",
    "temperature_end_celsius": "temperature_celsius",
}
"""Metric -> what it is read from."""
_OF_DEVICES = (*_PER_DEVICE, "energy_joules", "energy_polled_joules", "gpu_busy_share")
_UNITS = {"bytes": "B", "joules": "J", "seconds": "s", "share": "1", "celsius": "degC"}


class Reasons:
    """Why a value of a device can't be had: the last that was said while a phase was open."""

    def __init__(self, refusals: Iterable[Mapping[str, Any]], shape: Shape) -> None:
        """Take the refusals of the notes, and where the phases lie."""
        self._said: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
        for refusal in sorted(refusals, key=lambda r: int(r["last_ns"]), reverse=True):
            self._said.setdefault((refusal["device"], refusal["metric"]), []).append(refusal)
        self._open: dict[str, tuple[list[int], list[int]]] = {}
        for stretch in shape.borders.stretches:
            for phase in stretch.phases:
                begins, ends = self._open.setdefault(phase, ([], []))
                begins.append(stretch.begin_ns)
                ends.append(stretch.end_ns)

    def why(self, device: str, metric: str, otherwise: str, phase: str | None = None) -> str:
        """Return the reason, or ``otherwise`` where the helper gave none.

        With a phase, only what was said while that was open counts: a process that is not listed
        before it has a context says nothing about later.
        """
        for refusal in self._said.get((device, metric), ()):
            if phase is None or self._overlaps(phase, refusal["first_ns"], refusal["last_ns"]):
                return str(refusal["reason"])
        return otherwise

    def _overlaps(self, phase: str, first_ns: int, last_ns: int) -> bool:
        begins, ends = self._open.get(phase, ([], []))
        i = bisect.bisect_left(ends, first_ns)
        return i < len(begins) and begins[i] <= last_ns


def found(
    metric: str, phase: str, answer: Answer[Any] | Unavailable, device: str | None = None
) -> Found:
    """Return a number, or why there is none."""
    unit = _UNITS[metric.rsplit("_", 1)[1]]
    if isinstance(answer, Unavailable):
        return Found(metric, phase, None, unit, "unavailable", "none", answer.reason, device)
    value = int(answer.value) if unit == "B" else float(answer.value)
    return Found(metric, phase, value, unit, answer.quality, answer.source, None, device)


def no_devices(reason: str) -> list[Found]:
    """Return what a run on GPUs says that could not read any."""
    return [found(metric, RUN, Unavailable(reason)) for metric in _OF_DEVICES]


def memory(
    run: Collected, devices: Iterable[str], reasons: Reasons, late: str | None = None
) -> list[Found]:
    """Return peaks, the baseline, what the driver accounts for, and temperatures, by device.

    ``late`` says why no reading is from before the run.
    """
    numbers: list[Found] = []
    for uuid in devices:
        series = run.devices.get(uuid) or DeviceSeries(run.shape)
        for metric, by_phase, source in (
            ("device_used_peak_bytes", series.used.by_phase, _MEMORY),
            ("device_process_peak_bytes", series.process.by_phase, _LISTS),
        ):
            for phase in run.shape.phases:
                unread = "it was not read while the phase was on"
                why = reasons.why(uuid, _PER_DEVICE[metric], unread, phase)
                numbers.append(
                    found(metric, phase, _given(by_phase.get(phase), source, why), uuid)
                )
        numbers += _at_the_ends(series, uuid, reasons, late)
    return numbers


def _at_the_ends(
    series: DeviceSeries, uuid: str, reasons: Reasons, late: str | None
) -> list[Found]:
    ends = series.ends
    celsius, used = ends["temperature_celsius"], ends["device_used_bytes"]
    values: dict[str, tuple[float | None, str, Quality]] = {
        "device_used_baseline_bytes": (None if late else used.first, _MEMORY, "sampled"),
        "device_process_accounting_peak_bytes": (
            *(ends["accounting_peak_bytes"].after, "nvmlDeviceGetAccountingStats", "exact"),
        ),
        "temperature_start_celsius": (celsius.before, "nvmlDeviceGetTemperature", "sampled"),
        "temperature_end_celsius": (celsius.after, "nvmlDeviceGetTemperature", "sampled"),
    }
    numbers = []
    for metric, (value, source, quality) in values.items():
        why = reasons.why(uuid, _PER_DEVICE[metric], "it was not read")
        if late and metric == "device_used_baseline_bytes":
            why = late
        numbers.append(found(metric, RUN, _given(value, source, why, quality), uuid))
    return numbers


def over_devices(run: Collected, devices: list[str]) -> list[Found]:
    """Return the three answers to "how much memory" of several GPUs; none for one."""
    if len(devices) < 2:
        return []
    peaks = sums.peaks(run.moments.rows(devices))
    source = f"{_MEMORY}, {len(devices)} devices at the same moments"
    return [
        found(
            f"device_used_{name}_bytes",
            RUN,
            peaks if isinstance(peaks, Unavailable) else Answer(getattr(peaks, name), "B", source),
        )
        for name in ("max_gpu", "peak_of_sum", "sum_of_peaks")
    ]


def joules(
    run: Collected, devices: Iterable[str], reasons: Reasons
) -> tuple[list[Found], list[Doubt]]:
    """Return the energy of each device in each phase, and doubts; nobody adds devices up here."""
    numbers: list[Found] = []
    doubts: list[Doubt] = []
    for uuid in devices:
        series = run.devices.get(uuid) or DeviceSeries(run.shape)
        for phase in (phase for phase in ENERGY_PHASES if phase in run.shape.seconds):
            seconds = run.shape.seconds[phase]
            unpolled = reasons.why(uuid, "power_watts", "power was not read", phase)
            power = _total(series.polled, phase, seconds, unpolled)
            part = _energy(series, uuid, phase, seconds, power, reasons)
            polled = power if isinstance(power, Unavailable) else part.polled
            numbers.append(found("energy_joules", phase, part.counted, uuid))
            numbers.append(found("energy_polled_joules", phase, polled, uuid))
            # A phase that is short, or in the sensor's rhythm, says nothing against the run.
            doubts += [
                Doubt(d.name, d.severity, f"{uuid}, {phase}: {d.text}")
                for d in part.doubts
                if phase == RUN or d.name == "energy_counter_reset"
            ]
    return numbers, doubts


def _energy(
    series: DeviceSeries,
    uuid: str,
    phase: str,
    seconds: float,
    power: Answer[float] | Unavailable,
    reasons: Reasons,
) -> energy.Energy:
    why = reasons.why(uuid, "energy_joules", "the counter was not read", phase)
    flat: list[tuple[float, float]] = []
    if isinstance(power, Answer):
        flat = [(0.0, power.value / seconds), (seconds, power.value / seconds)]
    if phase in series.energy.fell:
        before, after = (Answer(v, "J", _COUNTER, "exact") for v in series.energy.fell[phase])
        return energy.window(before, after, seconds, flat)
    total = _total(series.energy, phase, seconds, why)
    if isinstance(total, Unavailable):
        return energy.window(total, total, seconds, flat)
    zero, risen = (Answer(v, "J", _COUNTER, "exact") for v in (0.0, total.value))
    of_phase = energy.window(zero, risen, seconds, flat)
    if isinstance(of_phase.counted, Unavailable):
        return of_phase
    # The counter misses nothing, but every border lies between two readings of it.
    counted = Answer(total.value, "J", _COUNTER)
    return energy.Energy(counted, of_phase.polled, of_phase.doubts)


def _total(series: Spread, phase: str, seconds: float, why: str) -> Answer[float] | Unavailable:
    """Return the sum of a phase, where readings cover it."""
    total = series.totals[phase]
    left_out = seconds - total.seconds
    if left_out > min(_SLACK_SECONDS, _SLACK_SHARE * seconds):
        text = f"known for {total.seconds:.2f} of the {seconds:.2f} s of {phase}"
        return Unavailable(f"{text}: {why}")
    return Answer(total.amount, "J", "")


def host_joules(run: Collected, reason: str | None) -> list[Found]:
    """Return what each CPU package took in each phase."""
    metric, numbers = "host_energy_joules", []
    if not run.packages:
        return [found(metric, RUN, Unavailable(reason or "RAPL was not read"))]
    for phase in (phase for phase in ENERGY_PHASES if phase in run.shape.seconds):
        for name, series in run.packages.items():
            total = _total(series, phase, run.shape.seconds[phase], "RAPL was not read")
            answer: Answer[float] | Unavailable = total
            if isinstance(total, Answer):
                answer = Answer(total.value, "J", "RAPL")
                if total.value <= 0:
                    text = "RAPL's counter did not move: a machine that does not pass it on"
                    answer = Unavailable(text)
            numbers.append(found(metric, phase, answer, name))
    return numbers


def busy(run: Collected, devices: Iterable[str], reasons: Reasons) -> list[Found]:
    """Return the share of the run's time in which a kernel ran on each device."""
    seconds, numbers = run.shape.seconds.get(RUN, 0.0), []
    for uuid in devices:
        series = run.devices.get(uuid) or DeviceSeries(run.shape)
        why = reasons.why(uuid, "kernel_time_percent", "it was not read", RUN)
        answer = _total(series.busy, RUN, seconds, why)
        if isinstance(answer, Answer):
            share = answer.value / series.busy.totals[RUN].seconds / 100
            answer = Answer(share, "1", "nvmlDeviceGetUtilizationRates, mean over time")
        numbers.append(found("gpu_busy_share", RUN, answer, uuid))
    return numbers


def gaps(readings: Gaps, source: str, device: str | None = None) -> list[Found]:
    """Return how far apart the readings of a source were, the run long."""
    quantiles = readings.quantiles()
    values = quantiles or (None, None, None)
    why = f"{source}: read less than twice while the run was on"
    return [
        found(f"sampling_gap_{name}_seconds", RUN, _given(value, source, why, "exact"), device)
        for name, value in zip(("p50", "p99", "max"), values, strict=True)
    ]


def _given(
    value: float | None, source: str, why: str, quality: Any = "sampled"
) -> Answer[float] | Unavailable:
    return Unavailable(why) if value is None else Answer(value, "", source, quality)
