"""The summary: one row per configuration, with memory, time and accuracy side by side."""

from __future__ import annotations

from collections.abc import Callable

from bench.records import Evaluation
from reports import headline, stats, units
from reports.configurations import Configuration, Spread, configurations
from reports.headline import BASES
from reports.load import Tables
from reports.table import Cell, Column, Table, missing, number, of_runs, table
from reports.theme import title_of

TITLE = "Summary"
ORDER = 0
SCOPE = "section"
FOLD_ABOVE = 100

_UNFINISHED = "The run did not complete."
_NO_TIMES = "A memory run: it is disturbed at every phase, so its times mean nothing."
_NOT_EVALUATED = "Nothing was evaluated."
_NOTE = (
    "± of a size is the standard deviation over seeds; ± of an accuracy is the binomial standard "
    "error, with the standard deviation over seeds (sd) below it."
)


def rows(tables: Tables) -> Table:
    """Return one row per configuration of the section, a column per headline number."""
    cells = [[make(c) for make in COLUMNS.values()] for c in configurations(tables)]
    return table(COLUMNS, cells, _NOTE)


def _method(c: Configuration) -> Cell:
    method = c.first.spec.method
    name = Cell(title_of(method), method, c.first.setting, tip=method, kind=f"method {method}")
    return of_runs(name, c.records)


def _model(c: Configuration) -> Cell:
    facts, n, name = c.first.record.model, c.first.parameters, c.first.spec.model
    note = f"{facts.family}, weights: {facts.source}. {facts.note or ''}" if facts else ""
    size = f"{units.count(n)} parameters" if n else "size unknown"
    return Cell(name, name, size, tip=note.strip())


def _outcome(c: Configuration) -> Cell:
    total, done = len(c.runs), len(c.completed)
    kinds = {run.spec.measure for run in c.runs}
    text = units.plural(c.seeds, "seed")
    if total != c.seeds * len(kinds):
        text = f"{total} runs, {text}"
    share = "" if done in (0, total) else f" {total - done} of {total}"
    ended = [run.record.reason for run in c.runs if run.record.status != "completed"]
    status = (others[0].ended if (others := c.uncompleted) else "completed") + share
    reasons = " ".join(dict.fromkeys(ended))
    text += "".join(f"; {doubt}" for doubt in c.doubts)
    return Cell(status, c.status, text, tip=reasons, kind=f"status-{c.status}")


def _memory(c: Configuration) -> Cell:
    if c.peak is None:
        return missing(_no_peak(c))
    one = next(run.peak for run in c.measured("memory") if run.peak.bytes is not None)
    tip = f"{BASES[one.basis]} ({one.source})"
    absolute = c.absolute_peak
    beside = "reserved" if one.basis == "device" else "with libraries"
    sub = f"{units.size(absolute.mean)} {beside}" if absolute else ""
    return number(_sizes(c.peak), c.peak.mean, c.peak_quality, tip, sub)


def _over_weights(c: Configuration) -> Cell:
    weights = c.first.parameter_bytes
    if c.peak is None:
        return missing(_no_peak(c))
    if not weights:
        return missing("The size of the weights is unknown.")
    ratio = c.peak.mean / weights
    tip = f"peak over the {units.size(weights)} of the weights alone"
    return number(f"{ratio:.2f}", ratio, c.peak_quality, tip)


def _predicted(c: Configuration) -> Cell:
    if c.predicted_peak is None:
        return _live(c)
    one = next(run.predicted for run in c.runs if run.predicted.bytes is not None)
    tip = f"{BASES[one.basis]} ({one.source})"
    sub = ""
    if c.peak and c.peak.mean and one.basis == c.first.peak.basis:
        sub = f"{units.signed(100 * (c.predicted_peak.mean / c.peak.mean - 1))} %"
        tip += "; below it, how far from the measured one"
    return number(_sizes(c.predicted_peak), c.predicted_peak.mean, "predicted", tip, sub)


def _live(c: Configuration) -> Cell:
    """Return the cell of a run on the CPU: live tensors, beside those that were measured."""
    if c.predicted_live is None:
        return missing("Not predicted.")
    found = (headline.live(run.record.predicted) for run in c.runs)
    source = next(m.source for m in found if m)
    tip, sub = f"live tensors on the host, without what is cached or freed ({source})", "tensors"
    if c.live:
        error = units.signed(100 * (c.predicted_live.mean / c.live.mean - 1))
        sub = f"tensors, {error} %"
        tip += f"; beside it, how far from the {units.size(c.live.mean)} that were measured"
    value = c.predicted_live
    return number(_sizes(value), value.mean, "predicted", tip, sub)


def _step(c: Configuration) -> Cell:
    seconds = c.step_seconds
    if not seconds:
        return missing(_why_untimed(c))
    low, middle, high = stats.quartiles(seconds)
    sub = f"IQR {units.interval(low, high)}" if len(seconds) > 1 else ""
    tip = f"median of {units.plural(len(seconds), 'step')} after the warm-up"
    return number(units.duration(middle), middle, "exact", tip, sub)


def _accuracy(c: Configuration) -> Cell:
    share = c.accuracy
    finals = [run.final for run in c.measured("time") if run.final and run.final.n]
    if share is None or not finals:
        return missing(_NOT_EVALUATED if c.completed else _UNFINISHED)
    n = finals[0].n
    error = stats.standard_error(round(share.mean * n), n)
    sub = f"{share.n} seeds, sd {100 * share.sd:.1f}" if share.sd is not None else ""
    return number(units.accuracy(share.mean, error, n), share.mean, "exact", _right(finals), sub)


def _right(finals: list[Evaluation]) -> str:
    right = ", ".join(str(e.correct) for e in finals)
    if len(finals) > 1:
        return f"{right} of {finals[0].n} right, by seed"
    low, high = (units.percent(x) for x in stats.wilson(finals[0].correct, finals[0].n))
    return f"{right} of {finals[0].n} right; 95 % interval (Wilson) {low} to {high}"


def _zero_shot(c: Configuration) -> Cell:
    share = c.zero_shot
    if share is None:
        return missing("Not evaluated before training.")
    return number(units.percent(share.mean), share.mean, "exact", "same prompt, same examples")


def _majority(c: Configuration) -> Cell:
    task = next((run.record.task for run in c.runs if run.record.task), None)
    if task is None or not task.eval_labels:
        return missing("The task has no held-back labels.")
    if c.accuracy is None and c.zero_shot is None:
        return missing(_NOT_EVALUATED)
    label, share = stats.majority(task.eval_labels)
    name = task.labels[label] if 0 <= label < len(task.labels) else str(label)
    return number(units.percent(share), share, "exact", f"always answering '{name}'", f"'{name}'")


def _no_peak(c: Configuration) -> str:
    return next((run.peak.reason for run in c.runs if run.peak.reason), _UNFINISHED)


def _why_untimed(c: Configuration) -> str:
    if not c.completed:
        return _UNFINISHED
    if all(run.spec.measure == "memory" for run in c.completed):
        return _NO_TIMES
    if all(run.spec.steps == 0 for run in c.completed):
        return "A run of no steps."
    return "No timed step after the warm-up."


def _sizes(s: Spread) -> str:
    return units.size(s.mean) + (f" ± {units.size(s.sd)}" if s.sd is not None else "")


COLUMNS: dict[Column, Callable[[Configuration], Cell]] = {
    Column("method", "Method"): _method,
    Column("model", "Model"): _model,
    Column("status", "Outcome"): _outcome,
    Column("peak_bytes", "Peak memory", True): _memory,
    Column("peak_over_weights", "÷ weights", True): _over_weights,
    Column("predicted_peak_bytes", "Predicted peak", True): _predicted,
    Column("step_median_seconds", "Step time", True): _step,
    Column("accuracy_fraction", "Accuracy", True): _accuracy,
    Column("zero_shot_fraction", "Zero-shot", True): _zero_shot,
    Column("majority_fraction", "Majority class", True): _majority,
}
"""Column -> what makes its cells."""
