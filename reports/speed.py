"""How fast a step is, as rows: one for each step of each case that ``bench step`` timed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pandas as pd

from bench.records.step_speed import TEXTBOOK, Spread, StepSpeed, StepTimes
from reports.run import machine_of
from reports.theme import title_of

SECTION = "step_speed"
TITLE = "Speed of a step"


def frame(records: Iterable[StepSpeed]) -> pd.DataFrame:
    """Return one row per step that has samples; empty where there is none.

    Ratios are time over the forward passes needed: medians over rounds, with range and quartiles.
    """
    several = list(records)
    names = labels(several)
    return pd.DataFrame(
        [
            {"case": names[record.key], **_row(record, step)}
            for record in several
            for step in record.steps
            if step.samples
        ]
    )


def labels(records: Iterable[StepSpeed]) -> dict[str, str]:
    """Return the key of each case with its name: model, dtype, shape, and what sets it apart."""
    several = list(records)
    known = {r.key: f"{r.case.model}, {r.case.dtype}, {r.case.shape}" for r in several}
    for word in (_task, _threads, _machine, _digest):
        often = Counter(known.values())
        again = {r.key: known[r.key] + word(r) for r in several if often[known[r.key]] > 1}
        if len(set(again.values())) > len(set(known[key] for key in again)):
            known |= again
    return known


def common(records: Iterable[StepSpeed]) -> str:
    """Return what all cases have in common, in words."""
    several = list(records)
    told = [
        {f"{r.case.task}" for r in several},
        {r.environment.noise_kernel + " kernel" for r in several},
        {f"{r.case.threads} threads" for r in several},
        {machine_of(r.environment, r.case.device) for r in several},
        {f"{r.case.rounds} rounds" for r in several},
    ]
    return ", ".join(next(iter(words)) for words in told if len(words) == 1)


def label(step: StepTimes) -> str:
    """Return the name of a step: the method's title and the options that were given."""
    if step.token == TEXTBOOK:
        return "Textbook step"
    options = ", ".join(f"{name} {value}" for name, value in step.options.items())
    return f"{title_of(step.method)} ({options})" if options else title_of(step.method)


def _row(record: StepSpeed, step: StepTimes) -> dict[str, object]:
    case, declared = record.case, step.declared
    return {
        "model": case.model,
        "dtype": case.dtype,
        "batch_size": case.batch_size,
        "seq_len_tokens": case.seq_len,
        "threads": case.threads,
        "step": label(step),
        "method": step.method,
        "textbook": step.token == TEXTBOOK,
        "distribution": step.distribution,
        "rounds": len(step.samples),
        "forwards": step.forwards,
        **_spread("ratio", step.ratios()),
        **_spread("cpu_ratio", step.ratios("cpu")),
        **_spread("times_faster_than_textbook", record.faster(step)),
        "noise_passes": declared.noise_passes if declared else None,
        "limit": record.limit(step),
        "limit_of_two_passes": record.limit(step, 2),
        "weights_bytes": record.weights_bytes,
        "forward_peak_bytes": record.forward_peak_bytes,
        "step_peak_bytes": step.peak.peak_bytes if step.peak else None,
        "extra_peak_bytes": record.extra_bytes(step),
        "outside_forwards_bytes": step.peak.outside_bytes if step.peak else None,
    }


def _spread(name: str, values: list[float]) -> dict[str, float | None]:
    spread = Spread.of(values)
    parts = ("median", "low", "high", "first_quartile", "third_quartile")
    return {f"{name}_{part}": getattr(spread, part, None) for part in parts}


def _task(record: StepSpeed) -> str:
    return f", {record.case.task}"


def _threads(record: StepSpeed) -> str:
    return f", {record.case.threads} threads"


def _machine(record: StepSpeed) -> str:
    return f", {machine_of(record.environment, record.case.device)}"


def _digest(record: StepSpeed) -> str:
    return f", {record.key[-8:]}"
