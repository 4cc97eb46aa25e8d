"""What each flag of a record means; how much it weighs stands with the code that raises it."""

from __future__ import annotations

FLAGS: dict[str, tuple[str, str]] = {
    "gpu_lost": ("invalid", "NVML said that a GPU is lost; numbers up to then stand"),
    "other_process": (
        "invalid",
        "the driver listed another process on a GPU that the run used, meanwhile",
    ),
    "energy_counter_reset": (
        "invalid",
        "the energy counter fell, or stood still for longer than it ever does",
    ),
    "process_list_garbled": ("invalid", "the driver's process list fits no known layout"),
    "mapping_ambiguous": ("invalid", "which GPU is which is a guess: name them by UUID"),
    "oom_retry": (
        "invalid",
        "torch's allocator was refused memory, emptied its cache and asked again, in a memory run",
    ),
    "not_idle_at_start": (
        "suspect",
        "before the run kernels ran on the GPU (> 2 % of the time), or over 300 MiB were held",
    ),
    "unattributed_memory": (
        "suspect",
        "more than 512 MiB are in use that no listed process claims: an invisible neighbour",
    ),
    "throttled": (
        "suspect",
        "heat, brake or hardware lowered the clocks, by the driver's account",
    ),
    "power_capped": ("info", "the power limit lowered the clocks; suspect in time runs"),
    "energy_window_short": ("suspect", "the run is below 60 steps of the energy counter (6 s)"),
    "energy_counter_vs_polled": (
        "suspect",
        "over the run, counter and polled power differ by more than 10 %",
    ),
    "ecc_errors": ("suspect", "the board's count of memory errors rose"),
    "sampling_gap": (
        "suspect",
        "the sampler looked away for more than 10 intervals, and a sampled peak is reported",
    ),
    "sampler_died": ("suspect", "the trace ends long before the run"),
    "sampler_late": ("suspect", "the sampler was not ready when the run began: no baseline"),
    "trace_incomplete": ("suspect", "rows of the trace were lost, or it could not be begun"),
    "nvml_hangs": ("suspect", "a call into the driver did not come back in time"),
    "host_busy": (
        "suspect",
        "other processes took more than 10 % of the CPUs that the run may use, in a time run",
    ),
    "memory_history": (
        "suspect",
        "the allocator kept a history on request: slower, and in the host's peaks",
    ),
    "own_memory_unreadable": (
        "info",
        "the driver does not say what this process holds; device use minus idle use stands in",
    ),
    "energy_not_attributable": ("info", "a MIG instance: power exists for the whole board alone"),
    "function_missing": ("info", "the driver is too old for a function, or the binding is"),
    "accounting_off": ("info", "the driver keeps no account of peaks; root can switch it on"),
    "process_list_filtered": ("info", "a container hides or renumbers processes"),
    "mask_cut": ("info", "CUDA_VISIBLE_DEVICES names something that ends the list early"),
    "resumed": ("info", "an earlier process was killed, and this one went on"),
}
"""Severity (where ``bench.devices.answer.SEVERITIES`` says none), and when it is raised."""
