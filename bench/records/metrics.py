"""Every number has a name, a unit and a definition; this is the list.

A tracker may bring metrics of its own with it. Every record carries the definitions of the
metrics in it; a number without one is refused. The phase of a measurement says where it was
taken: ``run`` is the whole process, ``load`` the building of model and data, ``train`` all steps,
``evaluate`` the task evaluation; ``perturb``, ``forward``, ``backward``, ``update`` are the
engine's own phases inside a step. The device of a measurement says which GPU it is of.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """What a number is: its unit, and a definition a reader can check."""

    unit: str  # B, s, h (hours), J (joules), degC; "1" for a count or a share
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
    "device_alloc_retries": Metric(
        "1",
        "Times that torch's allocator was refused memory, gave its cache back to the device and "
        "asked again, in the whole run. After one, reserved peaks are those of a full device.",
    ),
    "device_ooms": Metric("1", "Out-of-memory errors that torch's allocator raised in the run."),
    "device_used_peak_bytes": Metric(
        "B",
        "Largest memory in use on one device within the phase, by anybody, as its driver counts "
        "it (NVML version 2: without what the driver keeps for itself). Sampled: a spike "
        "shorter than the sampling gap may be missed.",
    ),
    "device_used_baseline_bytes": Metric(
        "B", "Memory in use on one device, by anybody, before the run touched it."
    ),
    "device_process_peak_bytes": Metric(
        "B",
        "Largest memory that the driver's process list ascribes to the run's process on one "
        "device within the phase: tensors, cache, CUDA context and libraries. Sampled.",
    ),
    "device_process_accounting_peak_bytes": Metric(
        "B",
        "Most memory that the run's process ever held on one device: the driver's accounting, "
        "raised at every allocation. Only where an administrator switched accounting on.",
    ),
    "device_used_max_gpu_bytes": Metric(
        "B", "Largest device_used_peak_bytes among several GPUs: the card that is needed."
    ),
    "device_used_peak_of_sum_bytes": Metric(
        "B", "Largest sum over several GPUs of memory in use at the same moment. Sampled."
    ),
    "device_used_sum_of_peaks_bytes": Metric(
        "B",
        "Sum over several GPUs of each one's largest memory in use, whenever that was: an upper "
        "bound of what the job held at once.",
    ),
    "energy_joules": Metric(
        "J",
        "Energy of one board within the phase, from the driver's counter: what it rose between "
        "the phase's borders, on straight lines between the readings around each.",
    ),
    "energy_polled_joules": Metric(
        "J",
        "Energy of one board within the phase: sampled power, integrated over time. A check on "
        "energy_joules; sensors average or skip, so it may be far off in short windows.",
    ),
    "host_energy_joules": Metric(
        "J",
        "Energy of one processor package within the phase (RAPL), whoever used it.",
    ),
    "gpu_busy_share": Metric(
        "1",
        "Share of the run's time in which a kernel ran on the device, as its driver samples it. "
        "It says nothing about how well the kernel used the device.",
    ),
    "sampling_gap_p50_seconds": Metric(
        "s", "Median time between two readings of memory in the run, as achieved."
    ),
    "sampling_gap_p99_seconds": Metric(
        "s", "99th percentile of the time between two readings of memory in the run."
    ),
    "sampling_gap_max_seconds": Metric(
        "s",
        "Longest time between two readings of memory in the run: a spike shorter than this may "
        "have been missed by every sampled peak.",
    ),
    "temperature_start_celsius": Metric("degC", "Temperature of one GPU when the run began."),
    "temperature_end_celsius": Metric("degC", "Temperature of one GPU when the run ended."),
    "phase_seconds": Metric(
        "s",
        "Wall time spent in the phase and in those inside it, summed over the run. The run, "
        "load, train, evaluate and resume by the host's monotonic clock, the device idle at both "
        "ends; on an accelerator the phases inside a step by events on its stream.",
    ),
    "phase_self_seconds": Metric(
        "s",
        "Wall time spent in the phase and in none inside it. Over all phases it adds up to "
        "phase_seconds of 'run', whose own share is what lies between: writing down, waiting.",
    ),
    "gpu_hours_reserved": Metric(
        "h",
        "Wall time of the run's process, start to end, times the GPUs it could see: idle ones "
        "count, since they were held. The headline.",
    ),
    "gpu_hours_train": Metric(
        "h",
        "Sum of the step seconds, warm-up included, times the GPUs: without loading, making of "
        "batches and evaluations.",
    ),
    "gpu_hours_to_target": Metric(
        "h",
        "gpu_hours_train up to the first evaluation whose accuracy is at least the spec's "
        "target_accuracy; unavailable where it was not reached.",
    ),
    "gpu_hours_busy": Metric(
        "h",
        "Time of the phase 'run' times gpu_busy_share, summed over the GPUs: hours in which a "
        "kernel ran, not efficiency.",
    ),
    "cpu_hours_reserved": Metric(
        "h",
        "Wall time of the run's process, start to end, times the cores it was given (threads for "
        "arithmetic). For runs without a GPU.",
    ),
    "cpu_hours_train": Metric(
        "h",
        "Sum of the step seconds, warm-up included, times the cores: without loading, making of "
        "batches and evaluations.",
    ),
    "cpu_hours_to_target": Metric(
        "h",
        "cpu_hours_train up to the first evaluation whose accuracy is at least the spec's "
        "target_accuracy; unavailable where it was not reached.",
    ),
    "cpu_hours_busy": Metric(
        "h",
        "CPU time of the run's process, user and system, over all its threads. From its start: "
        "imports and loading are in it.",
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
