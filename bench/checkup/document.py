"""Writes the tables of ``docs/measuring.md``: ``python -m bench.checkup.document``.

What a number is, its definition and unit, comes from the metrics themselves, and how much a flag
weighs from where it is raised. Where a number is read, how exact it is and which way it errs
stands here.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench import trackers
from bench.checkup.flags import FLAGS
from bench.devices.answer import SEVERITIES

EXACT, SAMPLED = "exact", "sampled"

_VMHWM = "`VmHWM` of `/proc`, reset by `clear_refs`"
_MALLOC = "every call of `malloc` and its kin, counted by a preloaded library"
_TORCH = "`memory_stats` of torch's caching allocator"
_NVML = "NVML in the sampler's process"
_RATE = "driver and board decide how often; a run below 6 s is flagged"
_EVENTS = "monotonic clock; inside a step on an accelerator events on its stream"
_WALL = "wall time of the process, times devices or cores"
_ROUND = "engine, at the watched steps (`bench/precision.py`)"

Facts = tuple[str, str, str]
"""Source, exactness, and known bias."""

FACTS: dict[str, Facts] = {
    "host_peak_bytes": (
        _VMHWM,
        EXACT,
        "Counts heap that was freed and kept: after 20,000 tensors of 16 KiB were let go, large "
        "ones read up to twice too high. Linux adds pages up in batches: 0.3 MiB low on 2 CPUs, "
        "more with more",
    ),
    "host_baseline_bytes": ("`VmRSS`", EXACT, "Libraries that load later count as the run's"),
    "host_allocated_peak_bytes": (
        _MALLOC,
        EXACT,
        "Small blocks count as malloc rounds them, and tensors' Python objects count too: +2 % at "
        "16 KiB. Mapped files, stacks and compiled code are not in it",
    ),
    "host_allocated_baseline_bytes": (_MALLOC, EXACT, ""),
    "device_allocated_peak_bytes": (_TORCH, EXACT, "Each tensor rounded up to 512 B"),
    "device_reserved_peak_bytes": (
        _TORCH,
        EXACT,
        "Cache and fragmentation are in it; a phase would inherit the cache of the one before, so "
        "memory runs empty it. Without CUDA context and libraries",
    ),
    "device_requested_peak_bytes": (_TORCH, EXACT, "Below what the device has to hold"),
    "device_alloc_retries": (_TORCH, EXACT, ""),
    "device_ooms": (_TORCH, EXACT, ""),
    "device_used_peak_bytes": (
        f"{_NVML}, version 2 of the memory query",
        SAMPLED,
        "Neighbours count (flag `other_process`); spikes shorter than the gap are missed. Old "
        "drivers know version 1 alone, which adds what the driver keeps (about 0.6 GB)",
    ),
    "device_used_baseline_bytes": (_NVML, SAMPLED, "One reading before the run"),
    "device_process_peak_bytes": (
        f"{_NVML}, process list",
        SAMPLED,
        "Unavailable under WDDM, WSL and in many containers; managed memory is not counted",
    ),
    "device_process_accounting_peak_bytes": (
        "NVML accounting",
        EXACT,
        "Since the process began, not by phase; off unless root switched it on",
    ),
    "device_used_max_gpu_bytes": (_NVML, SAMPLED, "As device_used_peak_bytes"),
    "device_used_peak_of_sum_bytes": (_NVML, SAMPLED, "Readings of GPUs are not simultaneous"),
    "device_used_sum_of_peaks_bytes": (_NVML, SAMPLED, "Too high where peaks do not coincide"),
    "energy_joules": (
        "NVML energy counter",
        SAMPLED,
        "Of the board, as its driver reports it; steps about every 0.1 s, and at every border, "
        f"the run's included, a straight line between two readings; {_RATE}",
    ),
    "energy_polled_joules": (
        "NVML power, integrated",
        SAMPLED,
        "Sensors of A100 and H100 look 25 % of the time: a load in their rhythm reads 0.5 to 2.4 "
        "times the truth",
    ),
    "host_energy_joules": (
        "RAPL of Linux",
        SAMPLED,
        "At every border a straight line between two readings. Whole package, whoever used it; "
        "DRAM mostly not in it; readable by root alone",
    ),
    "gpu_busy_share": (_NVML, SAMPLED, "One small kernel at a time counts as busy"),
    "sampling_gap_p50_seconds": ("the trace", EXACT, ""),
    "sampling_gap_p99_seconds": ("the trace", EXACT, ""),
    "sampling_gap_max_seconds": ("the trace", EXACT, ""),
    "temperature_start_celsius": (_NVML, SAMPLED, ""),
    "temperature_end_celsius": (_NVML, SAMPLED, ""),
    "phase_seconds": (_EVENTS, EXACT, "Phases inside a step contain the borders' own cost"),
    "phase_self_seconds": (_EVENTS, EXACT, "As phase_seconds"),
    "gpu_hours_reserved": (_WALL, EXACT, "Start-up and imports are in it: they held the GPU"),
    "gpu_hours_train": ("step seconds, times GPUs", EXACT, "Without evaluation and loading"),
    "gpu_hours_to_target": (
        "step seconds up to an evaluation",
        EXACT,
        "As coarse as `eval_every`; selection on the evaluated examples flatters",
    ),
    "gpu_hours_busy": ("gpu_busy_share", SAMPLED, "As gpu_busy_share; no efficiency"),
    "cpu_hours_reserved": (_WALL, EXACT, "Cores that were given, used or not"),
    "cpu_hours_train": ("step seconds, times cores", EXACT, "Without evaluation and loading"),
    "cpu_hours_to_target": ("step seconds up to an evaluation", EXACT, "As gpu_hours_to_target"),
    "cpu_hours_busy": ("CPU time of the process", EXACT, "Threads that spin count as busy"),
    "method_state_bytes": ("the method's own tensors", EXACT, ""),
    "trained_entries": ("the method's mask", EXACT, ""),
    "estimate_changed_share": (_ROUND, EXACT, "First 4,096 entries of each tensor"),
    "estimate_drift_rms": (_ROUND, EXACT, "First 4,096 entries of each tensor"),
    "update_changed_share": (_ROUND, EXACT, ""),
    "update_rms": (_ROUND, EXACT, ""),
    "update_surviving_share": (_ROUND, EXACT, ""),
}


def metrics() -> str:
    """Return the table of metrics."""
    known = trackers.definitions()
    rows = [
        f"| `{name}` | {known[name].unit} | {_cell(known[name].definition)} | {source} | {exact} "
        f"| {bias} |"
        for name, (source, exact, bias) in FACTS.items()
    ]
    head = (
        "| metric | unit | definition | source | quality | known bias |\n|---|---|---|---|---|---|"
    )
    return "\n".join([head, *rows])


def flags() -> str:
    """Return the table of flags, the heaviest first."""
    order = ("invalid", "suspect", "info")
    several = sorted(FLAGS.items(), key=lambda item: order.index(severity(item[0])))
    rows = [f"| {severity(name)} | `{name}` | {text} |" for name, (_, text) in several]
    return "\n".join(["| severity | flag | raised where |", "|---|---|---|", *rows])


def severity(name: str) -> str:
    """Return how much a flag weighs: as the code says where it does, else as the table here."""
    return SEVERITIES.get(name, FLAGS[name][0])


def page(text: str) -> str:
    """Return ``text`` with its tables made anew, between their marks."""
    for name, table in (("metrics", metrics()), ("flags", flags())):
        begin, end = f"<!-- {name}: made by python -m bench.checkup.document -->", "<!-- end -->"
        head, found, rest = text.partition(begin)
        if not found:
            raise ValueError(f"docs/measuring.md has no line '{begin}'")
        text = f"{head}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    return text


def _cell(text: str) -> str:
    return " ".join(text.replace("``", "`").replace("|", "\\|").split())


if __name__ == "__main__":
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/measuring.md")
    path.write_text(page(path.read_text(encoding="utf-8")), encoding="utf-8")
