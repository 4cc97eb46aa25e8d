"""What a run leaves behind. Raw bytes, raw seconds, raw samples; missing is absent, never 0."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import BaseModel, model_validator

from bench.records.frozen import FROZEN
from bench.records.metrics import Metric
from bench.records.spec import Objective, RunSpec

SCHEMA_VERSION = 1

Status = Literal["completed", "out_of_memory", "timed_out", "failed", "unsupported", "skipped"]
STATUSES: tuple[str, ...] = get_args(Status)
Quality = Literal["exact", "sampled", "predicted", "estimated", "unavailable"]
Severity = Literal["invalid", "suspect", "info"]
SEVERITIES: tuple[str, ...] = get_args(Severity)


class _Frozen(BaseModel):
    model_config = FROZEN


class Measurement(_Frozen):
    """One number, with what it is, where it was read, and how far to trust it."""

    metric: str
    """Name; the record's ``definitions`` say what it is."""
    phase: str
    """Where in the run it was taken."""
    value: int | float | None
    """The number; null exactly where the quality is ``unavailable``."""
    unit: str
    """Always the metric's own: B for bytes, s for seconds, h for hours, J for joules, 1 for a
    count or a share."""
    quality: Quality
    """``exact`` (a counter that misses nothing), ``sampled``, ``predicted``, ``estimated``, or
    ``unavailable``."""
    source: str
    """The counter it was read from."""
    reason: str | None = None
    """Why it is unavailable."""
    device: str | None = None
    """UUID of the GPU (or name of the processor package) it is of; null for the whole job."""

    @model_validator(mode="after")
    def _complete(self) -> Measurement:
        if (self.value is None) != (self.quality == "unavailable"):
            raise ValueError("a value is absent exactly where the quality is 'unavailable'")
        if self.value is None and not self.reason:
            raise ValueError("an unavailable value needs a reason")
        return self


class Failure(_Frozen):
    """Why a run did not complete, as far as it is known."""

    cause: str
    """Class of the error, or the signal."""
    phase: str | None = None
    """Innermost phase it happened in."""
    step: int | None = None
    """How many steps had been completed."""
    bytes_requested: int | None = None
    """Size of the allocation that was refused."""
    bytes_in_use: int | None = None
    """What the run still held when the error reached the harness, as the limit counts it; less
    than at the refusal itself where the error freed buffers on its way."""
    bytes_free: int | None = None
    """What was still to be had then: under the limit, or on the device as its driver says."""
    bytes_limit: int | None = None
    """The limit it was refused under: the spec's, or the device's."""
    log_tail: str = ""
    """Last lines of the log."""


class Steps(_Frozen):
    """The loss curve, and what each step cost; one entry a step, in order."""

    losses: list[float] = []
    """First loss the step saw: for two-point methods that of theta + eps z, not of theta."""
    seconds: list[float] | None = None
    """Wall time of each step; absent in a memory run."""
    queries: list[int] = []
    """Forward passes over a minibatch; an evaluation of an anchor set is as many as it takes, a
    generated answer (score f1) is one, however many tokens it has."""
    backwards: list[int] = []
    """Backward passes."""


class Evaluation(_Frozen):
    """One evaluation on the held-back examples."""

    step: int
    """Steps taken before it."""
    forward_passes: int
    """Minibatch evaluations of the objective spent on training before it."""
    backward_passes: int
    """Backward passes before it."""
    train_seconds: float | None
    """Seconds spent in steps before it; absent in a memory run."""
    n: int
    """Examples evaluated."""
    correct: int
    """Examples answered rightly: the true class or option; of a written answer, an exact match."""
    loss: float
    """Mean cross-entropy in nats: over the classes or options; of written answers, over the tokens
    of the first right one."""
    predictions: list[int]
    """Predicted class or option of each example, in the order of the held-back set; empty where
    answers are written."""
    scores: list[float] | None = None
    """Token F1 of each written answer against the best of the right ones, 0 to 1, in the order of
    the held-back set; absent where an answer is a class or an option."""


class ModelFacts(_Frozen):
    """What was really loaded."""

    name: str
    """As in the spec."""
    family: str
    """Architecture: opt, llama, roberta, ..."""
    source: str
    """"random" for weights drawn from the seed; otherwise where the weights came from."""
    parameters: int
    """Numbers in the model; tied ones once."""
    trained_parameters: int
    """Numbers that the method may change."""
    trained_tensors: list[str] | None = None
    """Names of the tensors that hold them; null where that is the whole model."""
    parameter_bytes: int
    """Bytes of all parameters in the run's dtype, tied ones once."""
    note: str | None = None
    """Anything a reader must know, such as weights recovered from a quantised file."""


class TaskFacts(_Frozen):
    """What was really asked."""

    name: str
    """As in the spec."""
    source: str
    """Where the examples came from."""
    prompt: str | None
    """Name of the prompt; its words and its template stand in the task's file."""
    objective: Objective | None = None
    """How examples became a loss, see the spec's field; absent for plain language modelling."""
    labels: list[str]
    """Label words, by class; empty where answers are written or there are none."""
    train_n: int
    """Training examples used."""
    eval_n: int
    """Held-back examples used."""
    eval_labels: list[int]
    """True class or option of each held-back example, in order; empty where answers are
    written."""
    eval_digest: str | None
    """SHA-256 (16 digits) of the held-back texts and labels: equal means the same examples."""
    note: str | None = None
    """Anything a reader must know, such as the data's licence."""


class Declared(_Frozen):
    """What the method says it costs, beside the weights and the activations. See ``Cost``."""

    queries: int
    """Evaluations of the objective a step."""
    backwards: int
    """Backward passes a step."""
    noise_passes: int
    """Times a step generates noise for every trained entry."""
    state_bytes: int
    """Kept between steps."""
    scratch_bytes: int
    """At most alive within a step: gradients, temporaries."""


class Flag(_Frozen):
    """A doubt about the measurement that every table must show."""

    name: str
    """What is doubted."""
    severity: Severity
    """``invalid`` (do not use), ``suspect`` (look again), or ``info``."""
    text: str
    """What was seen."""


class Environment(_Frozen):
    """Where it ran. Two records are compared only where this agrees as far as it matters."""

    zometer: str
    """Version of zometer."""
    commit: str | None
    """Commit of its checkout; null for an installed package."""
    dirty: bool | None
    """Whether the checkout had changes that were not committed."""
    code: str | None = None
    """SHA-256 (16 digits) of the source files of zo_core and bench; null in older records."""
    python: str
    """Version of Python."""
    packages: dict[str, str]
    """Versions of what decides numbers: torch, transformers, ..."""
    platform: str
    """Operating system and libc."""
    cpu: str
    """Processor."""
    cpu_cores: int
    """Cores the process may use."""
    threads: int
    """CPU threads used for arithmetic."""
    memory_total_bytes: int
    """Of the host."""
    devices: list[str]
    """Accelerators that torch sees."""
    allocator: str | None = None
    """Kind of torch's allocator on the accelerator; null on the CPU and in older records."""
    container: str | None = None
    """What suggests that it ran inside a container; null where nothing does."""
    noise_kernel: str
    """Which implementation of the noise stream ran (they differ in speed alone)."""
    variables: dict[str, str]
    """Environment variables that change allocation or threading, where set."""


class RunRecord(_Frozen):
    """One run, whole. Written once, atomically, and never edited."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    key: str
    """The run's name: readable, with a digest of the spec at its end."""
    suite: str
    """Suite it was run for."""
    group_title: str
    """Heading of the group in reports."""
    spec: RunSpec
    """What was asked."""
    status: Status
    """How it ended. ``out_of_memory`` is a result like any other."""
    reason: str
    """One sentence; never empty."""
    failure: Failure | None = None
    """What stopped it, where it did not complete."""
    started_at: str
    """UTC, ISO 8601."""
    wall_seconds: float
    """Of the whole process, start to end."""
    environment: Environment | None = None
    """Absent where the process died before it could say."""
    model: ModelFacts | None = None
    """The model; absent where it was not loaded."""
    task: TaskFacts | None = None
    """The task; absent where it was not loaded."""
    declared: Declared | None = None
    """What the method declares that it costs."""
    steps: Steps = Steps()
    """The loss curve and the seconds."""
    evaluations: list[Evaluation] = []
    """In the order made."""
    measurements: list[Measurement] = []
    """Every other number."""
    definitions: dict[str, Metric] = {}
    """What each metric in ``measurements`` and ``predicted`` is, and its unit."""
    predicted: list[Measurement] = []
    """The same metrics, computed without running; quality ``predicted``."""
    flags: list[Flag] = []
    """Doubts about the measurement."""
    files: dict[str, str] = {}
    """Name -> file beside the record: the events, the log, the trajectory, the trace."""

    @model_validator(mode="after")
    def _defined(self) -> RunRecord:
        for m in (*self.measurements, *self.predicted):
            metric = self.definitions.get(m.metric)
            if metric is None:
                raise ValueError(f"metric '{m.metric}' has no definition in this record")
            if m.unit != metric.unit:
                raise ValueError(f"metric '{m.metric}' is in {metric.unit}, not in {m.unit}")
        return self

    def value(self, metric: str, phase: str) -> int | float | None:
        """Return a measured value, or None where it is unavailable or was not taken."""
        for m in self.measurements:
            if m.metric == metric and m.phase == phase:
                return m.value
        return None
