"""Every evaluation on the held-back examples, and what was answered."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

from bench.records import Evaluation
from reports import stats, units
from reports.load import Tables
from reports.run import Run
from reports.table import Cell, Column, Table, missing, number, of_runs, table
from reports.theme import rank

TITLE = "Evaluations"
ORDER = 20
SCOPE = "section"
FOLD_ABOVE = 0

_COLUMNS = (
    Column("series", "Method"),
    Column("model", "Model"),
    Column("seed", "Seed", True),
    Column("step", "Step", True),
    Column("forward_passes", "Forward passes", True),
    Column("backward_passes", "Backward passes", True),
    Column("train_seconds", "Training time", True),
    Column("accuracy_fraction", "Accuracy", True),
    Column("loss_nats", "Loss (nats)", True),
    Column("token_f1_fraction", "Token F1", True),
    Column("answers", "Answers given"),
)
_NOTE = (
    "± is the binomial standard error. Answers given: how often each label word was chosen, "
    "beside how often it was right to; a method that only repairs a lopsided prompt shows here."
)


def rows(tables: Tables) -> Table:
    """Return one row per evaluation of every run, completed or not."""
    runs = sorted(tables.entries, key=lambda r: (r.facet, rank(r.spec.method), r.series))
    return table(_COLUMNS, [_row(r, e) for r in runs for e in r.record.evaluations], _NOTE)


def _row(run: Run, e: Evaluation) -> tuple[Cell, ...]:
    spec, timed = run.spec, run.spec.measure == "time" and e.train_seconds is not None
    seconds = e.train_seconds or 0.0
    return (
        of_runs(Cell(run.series, run.series, kind=f"method {spec.method}"), [run.record]),
        Cell(spec.model, spec.model),
        Cell(str(spec.seed), spec.seed),
        number(f"{e.step:,}", e.step, "exact"),
        number(f"{e.forward_passes:,}", e.forward_passes, "exact"),
        number(f"{e.backward_passes:,}", e.backward_passes, "exact"),
        number(units.duration(seconds), seconds, "exact")
        if timed
        else missing("A memory run: its times mean nothing."),
        _accuracy(e),
        number(f"{e.loss:.3f}", e.loss, "exact"),
        _f1(e),
        _answers(run, e),
    )


def _accuracy(e: Evaluation) -> Cell:
    if not e.n:
        return missing("No example was evaluated.")
    text = units.accuracy(e.correct / e.n, stats.standard_error(e.correct, e.n), e.n)
    return number(text, e.correct / e.n, "exact", f"{e.correct} of {e.n} right")


def _f1(e: Evaluation) -> Cell:
    if not e.scores:
        return missing("No answer is written here.")
    mean = fmean(e.scores)
    return number(f"{100 * mean:.1f}", mean, "exact", f"mean over {len(e.scores)} answers")


def _answers(run: Run, e: Evaluation) -> Cell:
    task = run.record.task
    if not e.predictions or task is None:
        return missing("Answers were not recorded, or are written ones.")
    given, true = Counter(e.predictions), Counter(task.eval_labels)
    names = dict(enumerate(task.labels))
    classes = sorted({*given, *true})
    text = ", ".join(
        f"{names.get(c, str(c))} {units.percent(given[c] / len(e.predictions))}"
        + (f" (true {units.percent(true[c] / len(task.eval_labels))})" if true else "")
        for c in classes
    )
    return Cell(text, text)
