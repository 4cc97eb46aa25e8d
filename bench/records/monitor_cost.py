"""The record of ``zometer bench monitor``: what measuring a step costs, beside the step alone.

Samples are raw; ratios are taken round by round, each sample over the mean of the steps without a
monitor right before and right after it.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from bench.records.frozen import FROZEN
from bench.records.keyed import write_keyed
from bench.records.record import Environment, ModelFacts
from bench.records.step_speed import Clock, StepCase

MONITOR_COST = "monitor_cost.json"

Watch = Literal["nothing", "time", "memory"]
"""What watches a step: nothing (a control: its ratio is 1, and its spread is the noise), the
monitor and the sampler as in a time run, or as in a memory run."""


class _Frozen(BaseModel):
    model_config = FROZEN


class MonitorCase(_Frozen):
    """What is measured: a step, and how often."""

    step: StepCase
    """Model, dtype, shape, threads, device, and the one method."""
    steps: int
    """Steps of a sample."""
    interval_seconds: float
    """Of the sampler."""

    @property
    def key(self) -> str:
        """Return the name on disk: readable, with a digest of all fields at its end."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        model = re.sub(r"[^a-z0-9.]+", "-", self.step.model.lower()).strip("-.")[-40:]
        parts = ["monitor", model.lstrip("-."), self.step.dtype, self.step.shape]
        return "--".join([*parts, hashlib.sha256(text.encode()).hexdigest()[:8]])


class MonitorSample(_Frozen):
    """One round: steps watched, beside the same number of steps not watched."""

    round: int
    """Counted from 0; odd ones ran in reverse order."""
    seconds: float
    """Wall time of the sample's steps, borders of phases included."""
    cpu_seconds: float
    """Time of the process' threads on the CPU, in the same stretch."""
    alone_seconds: float
    """Wall time of as many steps that nothing watches: mean of those before and after."""
    alone_cpu_seconds: float
    """The same in time on the CPU."""
    helper_cpu_seconds: float = 0.0
    """Time on the CPU of the sampler's process, its start and its end included."""


class WatchCost(_Frozen):
    """One way of watching."""

    watch: Watch
    """What watched."""
    samples: list[MonitorSample] = []
    """A sample a round."""

    def ratios(self, clock: Clock = "wall") -> list[float]:
        """Return, round by round, the time over that of the steps alone."""
        if clock == "wall":
            return [s.seconds / s.alone_seconds for s in self.samples]
        return [s.cpu_seconds / s.alone_cpu_seconds for s in self.samples]


class MonitorCost(_Frozen):
    """One case, whole. Written once, atomically, and never edited."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    kind: Literal["monitor_cost"] = "monitor_cost"
    """Tells it from other records."""
    key: str
    """The case's name."""
    case: MonitorCase
    """What was asked."""
    started_at: str
    """UTC, ISO 8601."""
    wall_seconds: float
    """Of the whole process."""
    environment: Environment
    """Where."""
    load_average: list[float] = []
    """Of the machine before and after the rounds, over one minute."""
    model: ModelFacts
    """The model."""
    sampler_cpu_share: float | None = None
    """Of one core, that the sampler takes while it runs; without its start. Absent where its own
    count could not be read."""
    phases_per_step: int
    """Phases that one step of the method opens, with the one around it."""
    phase_cost_seconds: float
    """Wall time to open and close a phase of a time run, written down: median of many empty ones.
    On an accelerator the host's part alone."""
    trackers: list[str] = []
    """Meters of memory that were read at the borders of the memory run."""
    watched: list[WatchCost]
    """The control, the time run, the memory run."""

    def cost(self, watch: Watch) -> WatchCost:
        """Return what a way of watching cost."""
        return next(one for one in self.watched if one.watch == watch)

    def time_share(self) -> float:
        """Return what the phases of a time run take of a step: their cost, times their number."""
        return self.phases_per_step * self.phase_cost_seconds / self.step_seconds()

    def step_seconds(self) -> float:
        """Return the median wall time of one step that nothing watches."""
        alone = [s.alone_seconds for one in self.watched for s in one.samples]
        return statistics.median(alone) / self.case.steps


def write_monitor_cost(folder: Path, record: MonitorCost) -> Path:
    """Write ``record`` into a folder of its key below ``folder``, and return the file."""
    return write_keyed(folder, MONITOR_COST, record.key, record)
