"""What rounding does: drift of restored weights, and how much of an update survives it."""

from __future__ import annotations

from collections.abc import Callable

from reports import units
from reports.configurations import Configuration, Spread, configurations, spread
from reports.load import Tables
from reports.table import Cell, Column, Table, missing, number, of_runs, table
from reports.theme import title_of

TITLE = "Precision: what rounding does"
ORDER = 8
SCOPE = "section"
FOLD_ABOVE = 12

METRICS = (
    "estimate_changed_share",
    "estimate_drift_rms",
    "update_rms",
    "update_changed_share",
    "update_surviving_share",
)
TENTH = 10
"""The training loss is the mean over the last so-manieth part of the steps."""
_UNFINISHED = "No run completed."
_NOTE = (
    "Over the watched steps (those that time statistics leave out). Changed by an estimate: "
    "entries that are not what they were when an estimate has put them back; drift: by how much, "
    "root mean square; asked: the update before rounding; changed by an update: entries that it "
    "moves at all; survives: the part of an update that rounding leaves, along the update. ± of a "
    "loss or an accuracy is half the 95 % interval over seeds (Student's t)."
)


def rows(tables: Tables) -> Table:
    """Return one row per configuration in which rounding was looked at."""
    seen = [c for c in configurations(tables) if any(c.metric(name) for name in METRICS)]
    return table(COLUMNS, [[make(c) for make in COLUMNS.values()] for c in seen], _NOTE)


def _method(c: Configuration) -> Cell:
    """Name the method, and what sets the row apart beside what has a column of its own."""
    run, own = c.first, ("dtype", "autocast", "options.restore", "options.rounding")
    method, fields = run.spec.method, {k: v for k, v in run.fields.items() if k in own}
    words = [word for word in run.setting.split(", ") if word not in fields.values()]
    said = [", ".join(words), *c.ended, *c.doubts]
    text = "; ".join(filter(None, said))
    return of_runs(Cell(title_of(method), method, text, kind=f"method {method}"), c.records)


def _dtype(c: Configuration) -> Cell:
    spec = c.first.spec
    with_autocast = f"autocast {spec.autocast}" if spec.autocast else ""
    return Cell(spec.dtype, spec.dtype, with_autocast)


def _option(name: str) -> Callable[[Configuration], Cell]:
    def cell(c: Configuration) -> Cell:
        given = c.first.spec.options.get(name)
        if given is None:
            return Cell("default", None, tip="The suite leaves it to the method.")
        return Cell(str(given), str(given))

    return cell


def _share(name: str) -> Callable[[Configuration], Cell]:
    def cell(c: Configuration) -> Cell:
        seen = c.metric(name)
        if seen is None:
            return missing("Not measured in this run.")
        return number(_percent(seen.mean), seen.mean, _quality(c, name), _range(c, name))

    return cell


def _size(name: str) -> Callable[[Configuration], Cell]:
    def cell(c: Configuration) -> Cell:
        seen = c.metric(name)
        if seen is None:
            return missing("Not measured in this run.")
        text = f"{seen.mean:.2e}" if seen.mean else "0"
        return number(text, seen.mean, _quality(c, name), _range(c, name))

    return cell


def _percent(share: float) -> str:
    """Return a share that may be close to 0 or to 1 without rounding it to either."""
    text = f"{100 * share:.2f} %"
    if share and text == "0.00 %":
        return "< 0.01 %"
    return "> 99.99 %" if share < 1 and text == "100.00 %" else text


def _quality(c: Configuration, name: str) -> str:
    found = (m for run in c.runs for m in run.record.measurements if m.metric == name)
    return next(m.quality for m in found if m.value is not None)


def _range(c: Configuration, name: str) -> str:
    """Return the values of the runs, for the remark on a mean."""
    found = [m.value for run in c.runs for m in run.record.measurements if m.metric == name]
    return "by run: " + ", ".join(f"{value:.6g}" for value in found if value is not None)


def _training_loss(c: Configuration) -> Cell:
    several = [run.record.steps.losses for run in c.measured("time")]
    tails = [losses[-max(1, len(losses) // TENTH) :] for losses in several if losses]
    return _mean(spread(sum(tail) / len(tail) for tail in tails))


def _held_back_loss(c: Configuration) -> Cell:
    return _mean(c.final_loss)


def _mean(loss: Spread | None) -> Cell:
    if loss is None:
        return missing(_UNFINISHED)
    half = loss.half_interval
    text = f"{loss.mean:.3f}" + (f" ± {half:.3f}" if half is not None else "")
    return number(text, loss.mean, tip=units.plural(loss.n, "seed"))


def _accuracy(c: Configuration) -> Cell:
    share = c.accuracy
    if share is None:
        return missing("Nothing was evaluated." if c.completed else _UNFINISHED)
    half = share.half_interval
    text = units.percent(share.mean) + (f" ± {100 * half:.1f}" if half is not None else "")
    return number(text, share.mean, sub=units.plural(share.n, "seed"))


COLUMNS: dict[Column, Callable[[Configuration], Cell]] = {
    Column("method", "Method"): _method,
    Column("dtype", "Dtype"): _dtype,
    Column("restore", "Restore"): _option("restore"),
    Column("rounding", "Rounding"): _option("rounding"),
    Column("estimate_changed_share", "Changed by an estimate", True): _share(METRICS[0]),
    Column("estimate_drift_rms", "Drift", True): _size(METRICS[1]),
    Column("update_rms", "Update asked", True): _size(METRICS[2]),
    Column("update_changed_share", "Changed by an update", True): _share(METRICS[3]),
    Column("update_surviving_share", "Update survives", True): _share(METRICS[4]),
    Column("training_loss_nats", "Training loss, last tenth", True): _training_loss,
    Column("evaluation_loss_nats", "Held-back loss", True): _held_back_loss,
    Column("accuracy_fraction", "Accuracy", True): _accuracy,
}
"""Column -> what makes its cells."""
