"""A record and what follows from its neighbours: section, series, facet, zero-shot.

A run alone does not know what sets it apart; this file looks at all of them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bench.records import Environment, Evaluation, RunRecord, RunSpec
from reports import headline, settings, stats
from reports.headline import Peak
from reports.theme import title_of


@dataclass(frozen=True)
class Run:
    """A record and what follows from its neighbours."""

    record: RunRecord
    machine: str
    section: str
    """Suite and group: what the page shows together."""
    configuration: str
    """Equal for runs that differ in seed or in what was measured, not in machine."""
    fields: settings.Fields
    setting: str = ""
    """What sets it apart within its section, besides method, model and seed."""
    series: str = ""
    """Method, and what sets it apart from the same method on the same model."""
    facet: str = ""
    """Model, with task and prompt where the section has several: what a panel shows."""
    parameters: int | None = None
    parameter_bytes: int | None = None
    zero_shot: Evaluation | None = None
    """Of the same model, task, prompt and examples, before any step."""
    folder: Path | None = None
    """Where its files lie; None for a record without any."""

    @property
    def is_invalid(self) -> bool:
        """Whether a flag says that what was measured must not be used."""
        return any(flag.severity == "invalid" for flag in self.record.flags)

    @property
    def is_predicted(self) -> bool:
        """Whether it was predicted and never made: nothing ended, well or not."""
        return self.record.status == "skipped" and bool(self.record.predicted)

    @property
    def spec(self) -> RunSpec:
        """The record's spec."""
        return self.record.spec

    @property
    def peak(self) -> Peak:
        """The measured memory headline."""
        return headline.measured(self.record)

    @property
    def predicted(self) -> Peak:
        """The predicted memory headline."""
        return headline.predicted(self.record)

    @property
    def final(self) -> Evaluation | None:
        """The evaluation after the last step of a completed run (the last, never the best)."""
        done = self.record.status == "completed" and self.record.evaluations
        return self.record.evaluations[-1] if done else None

    @property
    def ended(self) -> str:
        """How it ended, in words: a loss that stopped being finite is called ``diverged``.

        One that was never made is ``predicted``.
        """
        if self.is_predicted:
            return "predicted"
        failure = self.record.failure
        if failure and failure.cause == "NonFiniteLoss":
            return "diverged"
        return self.record.status.replace("_", " ")

    @property
    def majority(self) -> float | None:
        """Accuracy of always answering with the most frequent class, as a fraction."""
        task = self.record.task
        return stats.majority(task.eval_labels)[1] if task and task.eval_labels else None


def machine_of(environment: Environment, device: str) -> str:
    """Return what did the arithmetic: the accelerator, or the processor and its cores."""
    index = int(device.partition(":")[2] or 0)
    if device != "cpu" and index < len(environment.devices):
        return environment.devices[index]
    return f"{environment.cpu} ({environment.cpu_cores} cores)"


def place(records: Sequence[RunRecord]) -> list[Run]:
    """Return the runs, each seen among the others, small models first."""
    runs = _placed(records)
    placed = []
    for section in dict.fromkeys(run.section for run in runs):
        placed += _beside([run for run in runs if run.section == section], runs)
    return sorted(placed, key=_size)


def _size(run: Run) -> tuple[float, str]:
    return (math.inf if run.parameters is None else run.parameters), run.spec.model


def _placed(records: Sequence[RunRecord]) -> list[Run]:
    """Return the runs with their machine, section and configuration."""
    known = {machine_of(r.environment, r.spec.device) for r in records if r.environment}
    # A run that died before it could say ran where all the others did, if there is one such place.
    fallback = known.pop() if len(known) == 1 else "unknown machine"
    suites = {r.suite for r in records}
    runs = []
    for record in records:
        environment, device = record.environment, record.spec.device
        machine = machine_of(environment, device) if environment else fallback
        group = record.spec.group
        section = group if len(suites) == 1 else f"{record.suite}: {group}"
        fields = settings.words(record.spec, machine)
        runs.append(Run(record, machine, section, _configuration(record, machine), fields))
    return runs


def _configuration(record: RunRecord, machine: str) -> str:
    left_out = {"seed", "measure", "time_limit_seconds"}
    spec = record.spec.model_dump(mode="json", exclude=left_out)
    text = json.dumps([record.suite, machine, spec], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _beside(section: Sequence[Run], runs: Sequence[Run]) -> list[Run]:
    """Return the runs of a section with what can only be said in view of the others."""
    differ = settings.varying(run.fields for run in section)
    asked = [name for name in differ if name in ("task", "prompt")]
    facets = [", ".join([r.spec.model, *(r.fields[name] for name in asked)]) for r in section]
    alike: dict[tuple[str, str], list[settings.Fields]] = {}
    for run, facet in zip(section, facets, strict=True):
        alike.setdefault((run.spec.method, facet), []).append(run.fields)
    apart = {pair: settings.varying(fields) for pair, fields in alike.items()}
    placed = []
    for run, facet in zip(section, facets, strict=True):
        variant = settings.describe(run.fields, apart[run.spec.method, facet])
        parameters, parameter_bytes = _weights(run, runs)
        placed.append(
            replace(
                run,
                setting=settings.describe(run.fields, differ),
                series=title_of(run.spec.method) + (f" ({variant})" if variant else ""),
                facet=facet,
                parameters=parameters,
                parameter_bytes=parameter_bytes,
                zero_shot=_zero_shot(run, runs),
            )
        )
    return placed


def _weights(run: Run, runs: Sequence[Run]) -> tuple[int | None, int | None]:
    """Return numbers and bytes of the weights; a run that died may borrow those of its model."""
    mates = [r for r in runs if r.spec.model == run.spec.model and r.record.model]
    for mate in [run, *(r for r in mates if r.spec.dtype == run.spec.dtype)]:
        if facts := mate.record.model:
            return facts.parameters, facts.parameter_bytes
    facts = mates[0].record.model if mates else None
    return (facts.parameters, None) if facts else (None, None)


def _zero_shot(run: Run, runs: Sequence[Run]) -> Evaluation | None:
    """Return the evaluation before any step: the run's own, else that of an equal question."""
    for mate in [run, *(r for r in runs if _question(r) == _question(run))]:
        for evaluation in mate.record.evaluations:
            if evaluation.step == 0:
                return evaluation
    return None


def _question(run: Run) -> tuple[object, ...]:
    """Return what must agree for two untrained models to answer alike."""
    spec, task, model = run.spec, run.record.task, run.record.model
    random = bool(model and model.source == "random")
    prompt, digest = (task.prompt, task.eval_digest) if task else (None, None)
    same = (spec.model, spec.task, spec.dtype, spec.seq_len, prompt, digest)
    return (*same, spec.seed if random else None, run.machine)
