"""What a question to a driver comes back with: a value and where it was read, or a reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

T_co = TypeVar("T_co", covariant=True)

Severity = Literal["invalid", "suspect", "info"]


@dataclass(frozen=True)
class Answer(Generic[T_co]):
    """A value as the driver gave it.

    ``unit`` is B, J, W, s, %, degC, MHz, "1" (a count, a bit mask) or "" (a name); ``source`` the
    function that gave it; ``quality`` is ``exact`` for counters and facts that miss nothing, and
    ``sampled`` for gauges, which say nothing about the time between two readings.
    """

    value: T_co
    unit: str
    source: str
    quality: Literal["exact", "sampled"] = "sampled"


@dataclass(frozen=True)
class Unavailable:
    """There is no value, and why; ``value`` is None so that nobody adds it up.

    ``flag`` names the doubt that a record should carry for it, ``code`` is NVML's error number.
    """

    reason: str
    flag: str | None = None
    code: int | None = None

    @property
    def value(self) -> None:
        """Nothing."""
        return None


@dataclass(frozen=True)
class Doubt:
    """A flag for the record: something about the measurement that every table must show."""

    name: str
    severity: Severity
    text: str


SEVERITIES: dict[str, Severity] = {
    "gpu_lost": "invalid",
    "process_list_garbled": "invalid",
    "mapping_ambiguous": "invalid",
    "energy_counter_reset": "invalid",
    "other_process": "invalid",
    "not_idle_at_start": "suspect",
    "unattributed_memory": "suspect",
    "ecc_errors": "suspect",
    "sampling_gap": "suspect",
    "sampler_died": "suspect",
    "sampler_late": "suspect",
    "trace_incomplete": "suspect",
    "host_busy": "suspect",
    "energy_window_short": "suspect",
    "energy_counter_vs_polled": "suspect",
    "nvml_hangs": "suspect",
    "throttled": "suspect",
    "power_capped": "info",
    "own_memory_unreadable": "info",
    "energy_not_attributable": "info",
    "function_missing": "info",
    "mask_cut": "info",
    "accounting_off": "info",
    "process_list_filtered": "info",
}
"""How much each flag of devices and sampling weighs. In a timing run ``power_capped`` weighs more:
make it suspect there."""


def doubt(name: str, text: str) -> Doubt:
    """Return the flag with the weight it has by default."""
    return Doubt(name, SEVERITIES[name], text)
