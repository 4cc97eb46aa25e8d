"""What was wrong with the machine, or with the measuring of it, while a run went on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bench.devices import throttling
from bench.devices.answer import Answer, Doubt, Severity, doubt
from bench.sampler.collected import Collected, DeviceSeries
from bench.sampler.notes import LATE
from bench.sampler.windows import RUN

_MIB = 1 << 20
_IDLE_PERCENT = 2
_IDLE_BYTES = 300 * _MIB
_IDLE_BYTES_V1 = 1024 * _MIB  # version 1 of the query counts what the driver keeps
_UNATTRIBUTED_BYTES = 512 * _MIB
_HOST_SHARE = 0.10
_GAPS = 10
_HARMLESS = throttling.HARMLESS


def of_run(
    run: Collected, notes: Mapping[str, Any], of_energy: Iterable[Doubt], timing: bool
) -> list[Doubt]:
    """Return all doubts, each name once; ``of_energy`` came with the numbers."""
    found = list(of_energy)
    found += [Doubt(d["name"], d["severity"], d["text"]) for d in notes.get("doubts", [])]
    interval = float(notes.get("interval_seconds", 0.05))
    late = bool(notes.get("late"))
    if late:
        found.append(doubt("sampler_late", f"{LATE}: there is no baseline"))
    for uuid, series in run.devices.items():
        found += _of_device(uuid, series, interval, late)
    found += [*_refused(run, notes), *_capabilities(notes), *_own_memory(run, notes)]
    found += _trace(run, notes, interval)
    if timing:
        found += _host_busy(run, notes)
    return _merged(found, {"power_capped": "suspect"} if timing else {})


def _of_device(uuid: str, series: DeviceSeries, interval: float, late: bool) -> list[Doubt]:
    found = [*_others(series), *_throttled(series), *_ecc(series)]
    if not late:
        found += _not_idle(series)
    nobodys = series.unattributed.largest or 0
    if nobodys > _UNATTRIBUTED_BYTES:
        text = f"{nobodys / _MIB:.0f} MiB are used that no listed process holds"
        found.append(doubt("unattributed_memory", text))
    quantiles = series.gaps.quantiles()
    if quantiles is not None and quantiles[2] > _GAPS * interval:
        text = f"memory was not read for {quantiles[2]:.2f} s, asked was every {interval:g} s"
        found.append(doubt("sampling_gap", text))
    return [Doubt(d.name, d.severity, f"{uuid}: {d.text}") for d in found]


def _others(series: DeviceSeries) -> list[Doubt]:
    count = series.others.by_phase.get(RUN, 0)
    if not count:
        return []
    held = series.other_bytes.by_phase.get(RUN)
    what = "unknown memory" if held is None else f"up to {held / _MIB:.0f} MiB"
    return [doubt("other_process", f"up to {count:.0f} other processes at once, with {what}")]


def _not_idle(series: DeviceSeries) -> list[Doubt]:
    first = {name: ends.first for name, ends in series.ends.items()}
    percent, used = first["kernel_time_percent"], first["device_used_bytes"]
    limit = _IDLE_BYTES_V1 if first["device_driver_bytes"] is None else _IDLE_BYTES
    found = []
    if percent is not None and percent > _IDLE_PERCENT:
        found.append(f"kernels ran for {percent:.0f} % of the time")
    if used is not None:
        rest = used - (first["process_used_bytes"] or 0)
        if rest > limit:
            found.append(f"{rest / _MIB:.0f} MiB were used")
    if not found:
        return []
    return [doubt("not_idle_at_start", f"before the run began, {' and '.join(found)}")]


def _throttled(series: DeviceSeries) -> list[Doubt]:
    before: dict[str, Answer[float]] = {}
    after: dict[str, Answer[float]] = {}
    for name in throttling.COUNTERS:
        ends = series.ends[name]
        if ends.before is not None and ends.after is not None:
            before[name] = Answer(ends.before, "s", "")
            after[name] = Answer(ends.after, "s", "")
    if after:
        return throttling.throttled(before, after)
    # No counter: what was seen at the readings, which misses short spells.
    seen = sum(series.reasons.values())
    bad = {mask: n for mask, n in series.reasons.items() if mask & ~_HARMLESS}
    found = []
    for mask, n in bad.items():
        name = "power_capped" if mask & ~_HARMLESS == 0x4 else "throttled"
        words = ", ".join(throttling.names(mask & ~_HARMLESS))
        found.append(doubt(name, f"{words} in {n} of {seen} readings"))
    return found


def _ecc(series: DeviceSeries) -> list[Doubt]:
    found = []
    for name in ("ecc_corrected", "ecc_uncorrected"):
        ends = series.ends[name]
        rise = (ends.after or 0) - (ends.before or 0)
        if rise > 0:
            what = name.removeprefix("ecc_")
            found.append(doubt("ecc_errors", f"{rise:.0f} {what} memory errors during the run"))
    return found


def _refused(run: Collected, notes: Mapping[str, Any]) -> list[Doubt]:
    """Return what went wrong with a device while the run was on, in the driver's words."""
    worst: dict[tuple[str, str], Mapping[str, Any]] = {}
    for refusal in notes.get("refusals", []):
        flag = refusal["flag"]
        in_run = refusal["last_ns"] >= run.shape.begin_ns
        if flag in ("gpu_lost", "nvml_hangs", "process_list_garbled") and in_run:
            worst.setdefault((flag, refusal["device"]), refusal)
        if flag == "energy_not_attributable":
            worst.setdefault((flag, refusal["device"]), refusal)
    found = []
    for (flag, device), refusal in worst.items():
        since = (refusal["first_ns"] - run.shape.begin_ns) / 1e9
        when = f"{since:.1f} s into the run, " if since > 0 else ""
        found.append(doubt(flag, f"{device}: {when}{refusal['reason']}"))
    down = notes.get("unavailable") or {}
    if down.get("flag") in ("gpu_lost", "nvml_hangs"):
        found.append(doubt(down["flag"], down["reason"]))
    return found


def _capabilities(notes: Mapping[str, Any]) -> list[Doubt]:
    found = []
    for device in notes.get("devices", []):
        table = device.get("capabilities", {})
        missing = [n for n, c in table.items() if "too old to have it" in (c["reason"] or "")]
        if missing:
            text = f"{device['uuid']}: the driver is too old for {', '.join(missing)}"
            found.append(doubt("function_missing", text))
        account = table.get("accounting_peak_bytes", {}).get("reason") or ""
        if "accounting is off" in account:
            found.append(doubt("accounting_off", f"{device['uuid']}: {account}"))
    return found


def _own_memory(run: Collected, notes: Mapping[str, Any]) -> list[Doubt]:
    found = []
    for refusal in notes.get("refusals", []):
        series = run.devices.get(refusal["device"])
        if refusal["metric"] != "process_used_bytes" or series is None:
            continue
        if RUN in series.process.by_phase or refusal["last_ns"] < run.shape.begin_ns:
            continue  # before the run had a context there was nothing to list
        used = series.ends["device_used_bytes"]
        grown = series.used.by_phase.get(RUN, 0) - (used.first or 0)
        where = f"{refusal['device']}: {refusal['reason']}"
        if refusal["flag"] == "own_memory_unreadable":
            found.append(doubt("own_memory_unreadable", where))
        elif refusal["flag"] is None and grown > 64 * _MIB:
            found.append(doubt("process_list_filtered", where))
    return found


def _trace(run: Collected, notes: Mapping[str, Any], interval: float) -> list[Doubt]:
    late = (run.shape.end_ns - run.last_ns) / 1e9
    trace = notes.get("trace") or {}
    found = []
    lost = trace.get("lost_rows", 0)
    if lost or not trace.get("opened", True):
        found.append(doubt("trace_incomplete", f"{trace.get('problem')}; {lost} rows are lost"))
    if late <= max(1.0, 20 * interval):
        return found
    if not run.rows:
        text = "the trace holds no reading"
    elif notes.get("ended"):
        text = f"the sampler ended {late:.1f} s before the run ({notes['ended'].get('why')})"
    else:
        text = f"the last reading came {late:.1f} s before the run's end: the sampler was killed"
    return [*found, doubt("sampler_died", f"{text}, numbers are of the time before")]


def _host_busy(run: Collected, notes: Mapping[str, Any]) -> list[Doubt]:
    cpus = notes.get("cpus")
    took = {name: series.totals[RUN] for name, series in run.cpu.items()}
    if not cpus or not all(total.seconds for total in took.values()):
        return []
    cores = {name: total.amount / total.seconds for name, total in took.items()}
    others = cores["machine_busy_seconds"] - cores["cpu_seconds"] - cores["sampler_cpu_seconds"]
    share = others / cpus
    if share <= _HOST_SHARE:
        return []
    text = f"other processes took {share:.0%} of the run's {cpus} CPUs while the run was on"
    return [doubt("host_busy", text)]


def _merged(found: Iterable[Doubt], severities: Mapping[str, Severity]) -> list[Doubt]:
    """Return one doubt of each name, with everything that was said."""
    texts: dict[str, list[str]] = {}
    weights: dict[str, Severity] = {}
    for one in found:
        texts.setdefault(one.name, [])
        if one.text not in texts[one.name]:
            texts[one.name].append(one.text)
        weights[one.name] = severities.get(one.name, one.severity)
    return [Doubt(name, weights[name], "; ".join(said)) for name, said in texts.items()]
