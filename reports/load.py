"""Records to tables: the frames that plots draw from, and the typed runs behind them.

Every frame has the columns ``key, section, configuration, method, series, facet, model, seed,
measure, status`` and then its own; bytes and seconds are raw, what is missing is NaN or None.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import pandas as pd

from bench.records import Measurement, RunRecord
from bench.records.prediction_check import PredictionCheck
from bench.records.step_speed import StepSpeed
from reports import checks, headline, speed, stats
from reports.run import Run, place


@dataclass(frozen=True)
class Tables:
    """Everything the report is made of. Frames are described at the top of this file."""

    entries: tuple[Run, ...]
    runs: pd.DataFrame
    evaluations: pd.DataFrame
    steps: pd.DataFrame
    measurements: pd.DataFrame
    """Measured and predicted (quality ``predicted``)."""
    speeds: tuple[StepSpeed, ...] = ()
    """What ``zometer bench step`` timed; a section of its own."""
    checks: tuple[PredictionCheck, ...] = ()
    """What ``zometer bench prediction`` compared; a section of its own."""

    def sections(self) -> list[str]:
        """Return the sections, in the order in which they began to run; others come last."""
        first: dict[str, str] = {}
        for run in self.entries:
            begun = run.record.started_at
            first[run.section] = min(first.get(run.section, begun), begun)
        runs = sorted(first, key=lambda section: (first[section], section))
        others = [speed.SECTION] if self.speeds else []
        others += [checks.SECTION] if self.checks else []
        return list(dict.fromkeys([*runs, *others]))

    def valid(self) -> Tables:
        """Return the tables without the runs whose measurements must not be used."""
        if not any(run.is_invalid for run in self.entries):
            return self
        valid = from_runs(r for r in self.entries if not r.is_invalid)
        return replace(valid, speeds=self.speeds, checks=self.checks)

    def only(self, section: str) -> Tables:
        """Return the tables of one section."""
        entries = tuple(run for run in self.entries if run.section == section)
        frames = (self.runs, self.evaluations, self.steps, self.measurements)
        speeds = self.speeds if section == speed.SECTION else ()
        runs, evaluations, steps, measurements = (_within(frame, section) for frame in frames)
        compared = self.checks if section == checks.SECTION else ()
        return Tables(entries, runs, evaluations, steps, measurements, speeds, compared)


def _within(frame: pd.DataFrame, section: str) -> pd.DataFrame:
    """Return the rows of one section; a frame without any row has no columns either."""
    if frame.empty:
        return frame
    return frame[frame["section"] == section].reset_index(drop=True)


def load(
    records: Sequence[RunRecord],
    speeds: Sequence[StepSpeed] = (),
    folders: Sequence[Path] = (),
    compared: Sequence[PredictionCheck] = (),
) -> Tables:
    """Return the tables of some records, which may come from several suites and machines.

    ``folders`` are those of the records, one each, where traces may lie; or none.
    """
    beside = {id(record): folder for record, folder in zip(records, folders, strict=False)}
    runs = [replace(run, folder=beside.get(id(run.record))) for run in place(records)]
    return replace(from_runs(runs), speeds=tuple(speeds), checks=tuple(compared))


def from_runs(runs: Iterable[Run]) -> Tables:
    """Return the tables of some runs."""
    entries = tuple(runs)
    return Tables(
        entries,
        pd.DataFrame([{**_identity(run), **_run_row(run)} for run in entries]),
        pd.DataFrame([{**_identity(r), **e} for r in entries for e in _evaluation_rows(r)]),
        pd.DataFrame([{**_identity(r), **s} for r in entries for s in _step_rows(r)]),
        pd.DataFrame([{**_identity(r), **_number(m)} for r in entries for m in _all(r.record)]),
    )


def _identity(run: Run) -> dict[str, object]:
    spec = run.spec
    return {
        "key": run.record.key,
        "section": run.section,
        "configuration": run.configuration,
        "method": spec.method,
        "series": run.series,
        "facet": run.facet,
        "model": spec.model,
        "seed": spec.seed,
        "measure": spec.measure,
        "status": run.record.status,
    }


def _run_row(run: Run) -> dict[str, object]:
    spec, peak, guess = run.spec, run.peak, run.predicted
    basis = peak.basis if peak.bytes is not None else headline.basis_of(spec.device)
    return {
        "dtype": spec.dtype,
        "device": spec.device,
        "parameters": run.parameters,
        "parameter_bytes": run.parameter_bytes,
        "peak_bytes": peak.bytes,
        "peak_basis": basis,
        "absolute_peak_bytes": peak.absolute_bytes,
        "baseline_bytes": peak.baseline_bytes,
        "predicted_bytes": guess.bytes,
        "predicted_basis": guess.basis,
        "limit_bytes": spec.memory_limit_bytes,
        "refused_bytes": headline.refused_at(run.record),
        "zero_shot": run.zero_shot.correct / run.zero_shot.n if run.zero_shot else None,
        "majority": run.majority,
    }


def _evaluation_rows(run: Run) -> Iterable[dict[str, object]]:
    for e in run.record.evaluations:
        yield {
            "step": e.step,
            "forward_passes": e.forward_passes,
            "backward_passes": e.backward_passes,
            "train_seconds": e.train_seconds,
            "n": e.n,
            "correct": e.correct,
            "accuracy": e.correct / e.n if e.n else None,
            "standard_error": stats.standard_error(e.correct, e.n) if e.n else None,
            "loss": e.loss,
            "zero_shot": run.zero_shot.correct / run.zero_shot.n if run.zero_shot else None,
            "majority": run.majority,
        }


def _step_rows(run: Run) -> Iterable[dict[str, object]]:
    steps = run.record.steps
    passes = list(accumulate(steps.queries))
    for i, loss in enumerate(steps.losses):
        yield {
            "step": i + 1,
            "loss": loss,
            "score": run.spec.score,
            "forward_passes": passes[i] if i < len(passes) else None,
            "seconds": steps.seconds[i] if steps.seconds and i < len(steps.seconds) else None,
        }


def _all(record: RunRecord) -> list[Measurement]:
    return [*record.measurements, *record.predicted]


def _number(measurement: Measurement) -> dict[str, object]:
    return measurement.model_dump()
