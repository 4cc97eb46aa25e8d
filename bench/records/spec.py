"""What decides a run: everything that could change its result, and nothing else."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ByteSize, Field, TypeAdapter

from bench.records.frozen import FROZEN

Measure = Literal["memory", "time"]
Dtype = Literal["float32", "bfloat16", "float16"]
Option = bool | int | float | str
Objective = Literal["label_words", "options", "answer", "head"]
Score = Literal["cross_entropy", "accuracy", "f1"]
Schedule = Literal["constant", "linear", "cosine"]


def _bytes(value: object) -> object:
    """Read "1.5 GiB" as well as a number of bytes."""
    return int(TypeAdapter(ByteSize).validate_python(value)) if isinstance(value, str) else value


Bytes = Annotated[int, BeforeValidator(_bytes), Field(ge=1)]

_NAME = r"^[a-z0-9][a-z0-9_.-]*$"


def _plain(value: Option) -> Option:
    """Write 1.0 as 1: they are the same setting."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class RunSpec(BaseModel):
    """One run, frozen. Two equal specs are the same run, and have the same key."""

    model_config = FROZEN

    group: Annotated[str, Field(pattern=_NAME, max_length=64)] = "main"
    """Which part of a suite this run belongs to; reports draw a group together."""
    method: str
    """A file of ``zo_core/methods``."""
    lr: Annotated[float, Field(ge=0)] = 0.0
    """Learning rate; the highest one where ``lr_schedule`` changes it."""
    lr_schedule: Schedule = "constant"
    """``linear`` and ``cosine`` fall to 0 at the last step."""
    lr_warmup_steps: Annotated[int, Field(ge=0)] = 0
    """First steps over which the rate rises linearly from 0."""
    options: dict[str, Option] = {}
    """The method's own settings, such as ``eps``."""
    model: str
    """A built-in one (``zometer list models``), a hub name, or a local directory (a relative path
    counts from where zometer is started)."""
    task: str
    """A file of ``bench/tasks``."""
    prompt: str | None = None
    """One of the task's prompts; its default where absent."""
    objective: Objective | None = None
    """How examples become a loss; the task's first one that suits the model where absent.
    ``label_words``: cross-entropy over one token a class. ``options``: over the mean
    log-likelihoods of whole answers. ``answer``: teacher forcing on the tokens of the right
    answer. ``head``: a linear head on the model, which starts at zero."""
    score: Score = "cross_entropy"
    """What is minimised. ``accuracy`` and ``f1`` stand for one minus themselves; they have no
    gradient, so zeroth-order methods alone can take them."""
    demonstrations: Annotated[int, Field(ge=0)] = 0
    """Solved training examples put before each question (in-context learning)."""
    tuning: str = "full"
    """What is trained: a file of ``bench/tuning``."""
    tuning_options: dict[str, Option] = {}
    """Settings of the tuning, such as ``r`` of ``lora``."""
    dtype: Dtype = "float32"
    """Of the weights and of the arithmetic."""
    device: Annotated[str, Field(pattern=r"^(cpu|mps|(cuda|xpu)(:\d+)?)$")] = "cpu"
    """``cpu``, ``cuda`` or ``cuda:N`` (ROCm too), ``xpu`` or ``xpu:N``, ``mps``."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Examples a step sees."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Examples in one forward pass; all at once where absent. Losses are averaged over a step (and
    gradients of first-order methods accumulated) weighted by size. With ``restore = "batched"``
    a pass holds so many examples of each candidate."""
    anchor_examples: Annotated[int, Field(ge=1)] | None = None
    """Size of the anchor set of a variance-reduced method: the first so many training examples;
    all ``train_examples`` where absent."""
    autocast: Literal["bfloat16"] | None = None
    """Arithmetic of matrix products where ``dtype`` is float32: mixed precision with float32
    master weights, in training and in evaluation. (float16 would need loss scaling, and is not
    offered.)"""
    checkpointing: bool = False
    """Activation checkpointing of first-order methods: forward again instead of keeping."""
    seq_len: Annotated[int, Field(ge=1)] = 64
    """Longest sequence, in tokens: text is cut to fit, a prompt never."""
    steps: Annotated[int, Field(ge=0)]
    """Steps of the method. A run of 0 steps is evaluated as loaded."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """First steps left out of time statistics (they are taken, and recorded). In them, or in the
    first step where 0, zeroth-order runs also look at roundings, which takes time."""
    train_examples: Annotated[int, Field(ge=1)] = 512
    """How many training examples are used: the first of the task's fixed order."""
    eval_examples: Annotated[int, Field(ge=0)] = 0
    """Held-back examples to evaluate on, the same ones for every run; 0 evaluates nothing."""
    eval_every: Annotated[int, Field(ge=0)] = 0
    """Evaluate after every so many steps, besides before the first and after the last."""
    save_every: Annotated[int, Field(ge=0)] = 0
    """Save weights and state after every so many steps, so that a killed run resumes from there.
    A zeroth-order run needs none: it resumes from its trajectory."""
    target_accuracy: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of right answers whose price is asked for: hours to target are told up to the first
    evaluation that reaches it. Training does not look at it."""
    eval_batch_size: Annotated[int, Field(ge=1)] = 16
    """Examples evaluated at a time."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Of directions, random weights and the order of examples; not of the held-back set."""
    threads: Annotated[int, Field(ge=1)] | None = None
    """CPU threads for arithmetic. Where absent ``OMP_NUM_THREADS``, or else the physical cores
    that the process may use, within the quota of its control group."""
    measure: Measure = "time"
    """``memory`` resets peaks and trims the heap at phase borders, so its times mean nothing;
    ``time`` leaves the run alone. One run never claims both."""
    memory_limit_bytes: Bytes | None = None
    """Memory the run may take beyond its loaded libraries, in bytes or as "1.5 GiB"; an
    allocation beyond it fails."""
    time_limit_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """Wall time after which the run is ended as ``timed_out``."""

    def digest(self) -> str:
        """Return 8 hexadecimal digits that stand for every field.

        Fields at their default are left out, so that a field added later renames no finished run;
        for the same reason a default never changes within a schema version.
        """
        fields = self.model_dump(mode="json", exclude_defaults=True)
        fields["options"] = {k: _plain(v) for k, v in self.options.items()}
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def key(self) -> str:
        """Return the run's name on disk: readable, with a digest of all fields at its end."""
        model = re.sub(r"[^a-z0-9.]+", "-", self.model.lower()).strip("-.")[-40:].lstrip("-.")
        shape = f"b{self.batch_size}-s{self.seq_len}"
        parts = [self.group, self.method, model, self.task, self.dtype, shape, f"seed{self.seed}"]
        return "--".join([*parts, self.digest()])
