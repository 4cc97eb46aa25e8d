"""Every number has a name, a unit and a definition; this is the list.

A tracker may bring metrics of its own with it. Every record carries the definitions of the
metrics in it; a number without one is refused. The phase of a measurement says where it was
taken: ``run`` is the whole process, ``load`` the building of model and data, ``train`` all steps,
``evaluate`` the task evaluation; ``perturb``, ``forward``, ``backward``, ``update`` are the
engine's own phases inside a step.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """What a number is: its unit, and a definition a reader can check."""

    unit: str  # "B" for bytes, "s" for seconds, "1" for a count or a share
    definition: str


METRICS: dict[str, Metric] = {
    "host_peak_bytes": Metric(
        "B",
        "Largest resident set of the process within the phase: VmHWM of Linux, reset when the "
        "phase begins (phases of a memory run) or once before the model is loaded (phase 'run' "
        "of a time run). Holds the interpreter and the libraries too.",
    ),
    "host_baseline_bytes": Metric(
        "B",
        "Resident set of the process after its libraries were imported and before the model was "
        "loaded. A peak minus this is what the run itself took.",
    ),
    "device_allocated_peak_bytes": Metric(
        "B",
        "Largest sum of live tensors on one device within the phase, as torch's caching "
        "allocator counts them (rounded up to 512 bytes each).",
    ),
    "device_reserved_peak_bytes": Metric(
        "B",
        "Largest memory that torch's caching allocator held from one device within the phase: "
        "allocated, plus cache and fragmentation; without the CUDA context.",
    ),
    "device_requested_peak_bytes": Metric(
        "B",
        "Largest sum of live bytes asked for on one device within the phase, before the "
        "allocator rounds them.",
    ),
    "phase_seconds": Metric(
        "s", "Wall time spent in the phase, summed over the run, on a monotonic clock."
    ),
    "method_state_bytes": Metric(
        "B",
        "Bytes of the tensors that the method holds between steps, counted once a storage after "
        "the last step: optimiser states, anchors, masks. To be compared with what it declares.",
    ),
    "trained_entries": Metric(
        "1",
        "Entries that the method's mask lets move, counted after the last step; absent where all "
        "trained parameters do. A mask by magnitude changes as weights grow out of it.",
    ),
    "estimate_changed_share": Metric(
        "1",
        "Share of entries (the first 4,096 of each trained tensor) that an estimate leaves "
        "changed by rounding, over the watched steps. 0 where weights are restored exactly.",
    ),
    "estimate_drift_rms": Metric(
        "1", "Root mean square of what an estimate leaves those entries changed by, a step."
    ),
    "update_changed_share": Metric(
        "1", "Share of all trained entries that an update changes, over the watched steps."
    ),
    "update_rms": Metric(
        "1", "Root mean square of the change that an update asked for, before rounding."
    ),
    "update_surviving_share": Metric(
        "1",
        "Part of an update that survives rounding: <done, asked> / <asked, asked> over all "
        "trained entries of the watched steps. 1 where nothing is lost.",
    ),
}
