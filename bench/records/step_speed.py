"""The record of ``zometer bench step``: one model, dtype and shape, and every step timed on it.

Samples are raw. What is derived of them is defined here, once, for the command line and for the
report: ratios are taken round by round, between things measured next to each other.
"""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from bench.records.frozen import FROZEN
from bench.records.keyed import in_order, read_keyed, write_keyed
from bench.records.record import Declared, Environment, ModelFacts
from bench.records.spec import Dtype, Option

STEP_SPEED = "step_speed.json"
TEXTBOOK = "textbook"
"""Token of the step written straight from the paper's formula."""
IN_PLACE = "mul_(1.0)"
COPY = "copy_"
"""Passes over memory that noise is compared with; the first over the same bytes as float32."""

Clock = Literal["wall", "cpu"]


class _Frozen(BaseModel):
    model_config = FROZEN


class StepCase(_Frozen):
    """What is measured in one process: a model, a dtype, a shape, and the steps to compare."""

    model: str
    """As in a suite."""
    dtype: Dtype
    """Of weights and arithmetic."""
    batch_size: Annotated[int, Field(ge=1)]
    """Sequences of the minibatch; it is the same one in every round."""
    seq_len: Annotated[int, Field(ge=1)]
    """Tokens of a sequence."""
    task: str = "random_tokens"
    """Where the minibatch and the loss come from."""
    methods: list[str]
    """Tokens ``name[:option=value,...]``."""
    rounds: Annotated[int, Field(ge=1)] = 7
    """Rounds that are kept; one before them is not."""
    textbook_rounds: Annotated[int, Field(ge=0)] = 3
    """How many of them take the textbook step as well."""
    threads: Annotated[int, Field(ge=1)]
    """CPU threads for arithmetic."""
    device: str = "cpu"
    """``cpu``, ``cuda`` or ``cuda:N``."""
    anchor_batches: Annotated[int, Field(ge=1)] = 1
    """Minibatches of an anchor set (SVRG). 1 is the dearest against the forward passes."""
    lr: float = 1e-6
    """Small, so that nothing diverges, and not 0, which would skip the update."""
    seed: int = 0
    """Of weights, tokens and directions."""
    noise: bool = True
    """Whether the noise kernel and the memory are timed by themselves."""
    peaks: bool = True
    """Whether bytes are counted."""

    @property
    def shape(self) -> str:
        """Return the shape as it is written on the command line."""
        return f"{self.batch_size}x{self.seq_len}"

    @property
    def key(self) -> str:
        """Return the name on disk: readable, with a digest of all fields at its end."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        model = re.sub(r"[^a-z0-9.]+", "-", self.model.lower()).strip("-.")[-40:].lstrip("-.")
        parts = ["step", model, self.dtype, self.shape, f"threads{self.threads}"]
        return "--".join([*parts, hashlib.sha256(text.encode()).hexdigest()[:8]])


class StepSample(_Frozen):
    """One round of one step, beside the forward passes taken right before and after it."""

    round: int
    """Counted from 0; odd ones ran in reverse order."""
    seconds: float
    """Wall time (on CUDA between events on the stream) of the sample's steps."""
    cpu_seconds: float
    """Time of the process' threads on the CPU, in the same stretch."""
    forward_seconds: float
    """Wall time of one forward pass in inference mode: mean of the one before and after."""
    forward_cpu_seconds: float
    """The same in time on the CPU."""


class StepPeak(_Frozen):
    """Tensor bytes alive beyond those at the start of a step."""

    peak_bytes: int
    """The most at any moment."""
    outside_bytes: int
    """The most at a moment outside the forward passes: what perturbing and updating take."""


class StepTimes(_Frozen):
    """One kind of step."""

    token: str
    """As given on the command line, or ``textbook``."""
    method: str
    """File of ``zo_core/methods``; ``mezo`` for the textbook step."""
    options: dict[str, Option] = {}
    """Settings that were given."""
    distribution: str | None = None
    """Of the directions; null for a method without any."""
    steps: int = 1
    """Steps of a sample: a whole period of a method that has one (SVRG), so that all compare."""
    forwards: int = 0
    """Forward passes over a minibatch that a sample needs; an anchor look is as many as it
    takes."""
    declared: Declared | None = None
    """What the method declares that a step costs (the dearest one)."""
    samples: list[StepSample] = []
    """A sample a round."""
    idle_updates: int = 0
    """Steps whose estimate had a coefficient of 0: their update did less than it should."""
    peak: StepPeak | None = None
    """Absent where bytes were not counted."""
    reason: str | None = None
    """Why it could not be run, where it has no samples."""

    def ratios(self, clock: Clock = "wall") -> list[float]:
        """Return, round by round, the time over that of the forward passes it needs."""
        if clock == "wall":
            return [s.seconds / (self.forwards * s.forward_seconds) for s in self.samples]
        return [s.cpu_seconds / (self.forwards * s.forward_cpu_seconds) for s in self.samples]


class PassSpeed(_Frozen):
    """One pass over a tensor by itself: noise added in place, or what it is compared with."""

    name: str
    """A distribution, ``copy_`` or ``mul_(1.0)``."""
    elements: int
    """Of the tensor, which is larger than the caches."""
    moved_bytes: int
    """Read and written."""
    seconds: list[float]
    """Wall time of each pass."""
    cpu_seconds: list[float]
    """Time on the CPU of each pass."""

    @property
    def nanoseconds_per_element(self) -> float:
        """Return the median wall time by element."""
        return 1e9 * statistics.median(self.seconds) / self.elements

    @property
    def bytes_per_second(self) -> float:
        """Return bytes read and written by second, at the median."""
        return self.moved_bytes / statistics.median(self.seconds)


class StepSpeed(_Frozen):
    """One case, whole. Written once, atomically, and never edited."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    kind: Literal["step_speed"] = "step_speed"
    """Tells it from other records."""
    key: str
    """The case's name."""
    case: StepCase
    """What was asked."""
    started_at: str
    """UTC, ISO 8601."""
    wall_seconds: float
    """Of the whole process."""
    environment: Environment
    """Where, with the noise kernel that ran."""
    load_average: list[float] = []
    """Of the machine before and after the rounds, over one minute: above the number of cores,
    wall times are shared with strangers, and CPU times are the better ones."""
    model: ModelFacts
    """The model."""
    weights_bytes: int
    """Of what is trained: what a pass over the weights reads, and writes."""
    steps: list[StepTimes]
    """The textbook step, if it was taken, and each method."""
    passes: list[PassSpeed] = []
    """Noise, a copy and a multiplication in place, by themselves."""
    forward_peak_bytes: int | None = None
    """Tensor bytes that a forward pass in inference mode has alive at most, beyond the weights."""

    def times(self, token: str) -> StepTimes | None:
        """Return the step of ``token``, if it has samples."""
        found = (s for s in self.steps if s.token == token and s.samples)
        return next(found, None)

    def faster(self, step: StepTimes, clock: Clock = "wall") -> list[float]:
        """Return how many times as fast as the textbook step it is, round by round.

        By forward pass needed, so that a method with other queries can be compared.
        """
        textbook = self.times(TEXTBOOK)
        if textbook is None:
            return []
        theirs = {s.round: _by_forward(textbook, s, clock) for s in textbook.samples}
        ours = {s.round: _by_forward(step, s, clock) for s in step.samples}
        return [theirs[r] / ours[r] for r in sorted(theirs.keys() & ours.keys())]

    def limit(self, step: StepTimes, passes: int | None = None) -> float | None:
        """Return the ratio that memory allows: noise for free, weights read and written.

        ``1 + steps * passes * 2 weights_bytes / bandwidth / forwards``, with the bandwidth of the
        multiplication in place, and ``passes`` by step: as declared where not given.
        """
        bandwidth = next((p.bytes_per_second for p in self.passes if p.name == IN_PLACE), None)
        if bandwidth is None or not step.samples or step.declared is None:
            return None
        if step.declared.backwards:
            return None
        count = step.declared.noise_passes if passes is None else passes
        forward = statistics.median(s.forward_seconds for s in step.samples)
        moving = step.steps * count * 2 * self.weights_bytes / bandwidth
        return 1 + moving / (step.forwards * forward)

    def extra_bytes(self, step: StepTimes) -> int | None:
        """Return the peak of a step beyond that of a forward pass."""
        if step.peak is None or self.forward_peak_bytes is None:
            return None
        return step.peak.peak_bytes - self.forward_peak_bytes


@dataclass(frozen=True)
class Spread:
    """Median and range of paired samples."""

    median: float
    low: float
    high: float
    first_quartile: float
    third_quartile: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Return the spread of ``values``; None where there are none.

        >>> Spread.of([3.0, 1.0, 2.0]).median
        2.0

        """
        if not values:
            return None
        several = sorted(values)
        quarters = [several[0]] * 3
        if len(several) > 1:
            quarters = statistics.quantiles(several, n=4, method="inclusive")
        low, middle, high = quarters
        return cls(middle, several[0], several[-1], low, high, len(several))


def _by_forward(step: StepTimes, sample: StepSample, clock: Clock) -> float:
    return (sample.seconds if clock == "wall" else sample.cpu_seconds) / step.forwards


def write_step_speed(folder: Path, record: StepSpeed) -> Path:
    """Write ``record`` into a folder of its key below ``folder``, and return the file."""
    return write_keyed(folder, STEP_SPEED, record.key, record)


def read_step_speeds(folder: Path) -> list[StepSpeed]:
    """Read every record of this kind below ``folder``, in the order they began; often none.

    Raises:
        UserError: one can't be read.

    """
    paths = sorted(folder.rglob(STEP_SPEED))
    return in_order([read_keyed(path, StepSpeed, "bench step") for path in paths])
