"""What each method brought and what it spent, over seeds: gains, losses and failures alike."""

from __future__ import annotations

from collections.abc import Callable

from reports import stats, units
from reports.configurations import Configuration, Spread, configurations
from reports.load import Tables
from reports.table import Cell, Column, Table, missing, number, of_runs, table
from reports.theme import title_of

TITLE = "Methods: what they brought, what they spent"
ORDER = 5
SCOPE = "section"
FOLD_ABOVE = None

_NOT_EVALUATED = "Nothing was evaluated after training."
_NOT_DECLARED = "The run ended before the method could declare it."
_NOTE = (
    "± is half the 95 % interval of the mean over seeds (Student's t): it says how much the seed "
    "decides, not how much these held-back examples do; of one seed there is none. Change: "
    "accuracy after the last step minus the run's own accuracy before the first, in percentage "
    "points. Means stand on the seeds that completed; the outcome says how the others ended. "
    "State: kept between steps; scratch: at most alive within a step; both beside weights and "
    "activations. ⊘, ⚠, ⚑: see the doubts about the measurements."
)


def rows(tables: Tables) -> Table:
    """Return one row per configuration; none where nothing was evaluated."""
    if tables.evaluations.empty:
        return table(COLUMNS, [])
    several = tables.runs["facet"].nunique() > 1
    shown = {column: make for column, make in COLUMNS.items() if several or column != _MODEL}
    cells = [[make(c) for make in shown.values()] for c in configurations(tables)]
    return table(shown, cells, _NOTE)


def _method(c: Configuration) -> Cell:
    spec = c.first.spec
    kind = f"method {spec.method}"
    return of_runs(Cell(title_of(spec.method), spec.method, c.first.setting, kind=kind), c.records)


def _model(c: Configuration) -> Cell:
    return Cell(c.first.facet, c.first.spec.model)


def _outcome(c: Configuration) -> Cell:
    """Say how the runs ended, and why in full: a reason is no less a result than a number."""
    others = c.uncompleted
    word = others[0].ended if others else "completed"
    share = f" {len(others)} of {len(c.runs)}" if 0 < len(others) < len(c.runs) else ""
    told = [units.plural(c.seeds, "seed"), *c.ended, *c.doubts]
    return Cell(word + share, c.status, "; ".join(told), kind=f"status-{c.status}")


def _accuracy(c: Configuration) -> Cell:
    share = c.accuracy
    if share is None:
        return missing(_why_not(c))
    finals = [(r.spec.seed, r.final) for r in c.measured("time") if r.final and r.final.n]
    each = ", ".join(f"seed {seed}: {e.correct} of {e.n}" for seed, e in finals)
    text = f"{units.percent(share.mean)}{_points(share)}"
    return number(text, share.mean, tip=each, sub=_n(share))


def _change(c: Configuration) -> Cell:
    change = c.change
    if change is None:
        no_step = c.completed and all(run.spec.steps == 0 for run in c.completed)
        return missing("A run of no steps." if no_step else _why_not(c))
    text = f"{units.signed(100 * change.mean)}{_points(change)}"
    half = change.half_interval
    within = half is not None and abs(change.mean) <= half
    said = ["below where it began"] if change.mean < 0 else []
    said += ["no change"] if change.mean == 0 else []
    said += ["interval holds 0"] if within and change.mean else []
    said += [_n(change)] if half is None else []
    kind = "alarm" if change.mean < 0 else ""
    return number(text, 100 * change.mean, sub="; ".join(said), kind=kind)


def _f1(c: Configuration) -> Cell:
    score = c.written_score
    if score is None:
        return missing("No answer is written here.")
    return number(f"{100 * score.mean:.1f}{_points(score)}", score.mean, sub=_n(score))


def _loss(c: Configuration) -> Cell:
    loss = c.final_loss
    if loss is None:
        return missing(_why_not(c))
    half = loss.half_interval
    text = f"{loss.mean:.3f}" + (f" ± {half:.3f}" if half is not None else "")
    return number(text, loss.mean, tip=_n(loss))


def _forwards(c: Configuration) -> Cell:
    return _count(c.spent("queries"), c)


def _backwards(c: Configuration) -> Cell:
    return _count(c.spent("backwards"), c)


def _count(spent: Spread | None, c: Configuration) -> Cell:
    if spent is None:
        return number("0", 0) if c.completed else missing("No step was taken.")
    differ = f"sd {units.digits(spent.sd)} over runs" if spent.sd else ""
    return number(f"{spent.mean:,.0f}", spent.mean, sub=differ)


def _declared_state(c: Configuration) -> Cell:
    return _bytes(c.declared("state_bytes"))


def _scratch(c: Configuration) -> Cell:
    return _bytes(c.declared("scratch_bytes"))


def _measured_state(c: Configuration) -> Cell:
    measured, declared = c.metric("method_state_bytes"), c.declared("state_bytes")
    if measured is None:
        return missing("Not counted in this run (it is counted after the last step).")
    over = measured.mean - declared if declared is not None else 0
    sub = f"{units.size(over)} over what is declared" if over > 0 else ""
    kind = "alarm" if over > 0 else ""
    tip = f"{measured.mean:,.0f} bytes"
    return number(units.size(measured.mean), measured.mean, tip=tip, sub=sub, kind=kind)


def _bytes(n: int | None) -> Cell:
    return missing(_NOT_DECLARED) if n is None else number(units.size(n), n, tip=f"{n:,} bytes")


def _why_not(c: Configuration) -> str:
    return _NOT_EVALUATED if c.completed else "No run completed: the reason stands in its row."


def _points(s: Spread) -> str:
    half = stats.half_interval(s.sd, s.n)
    return f" ± {100 * half:.1f}" if half is not None else ""


def _n(s: Spread) -> str:
    return units.plural(s.n, "seed")


_MODEL = Column("model", "Model")
COLUMNS: dict[Column, Callable[[Configuration], Cell]] = {
    Column("method", "Method"): _method,
    _MODEL: _model,
    Column("outcome", "Outcome"): _outcome,
    Column("accuracy_fraction", "Accuracy", True): _accuracy,
    Column("change_points", "Change", True): _change,
    Column("token_f1_fraction", "Token F1", True): _f1,
    Column("evaluation_loss_nats", "Held-back loss", True): _loss,
    Column("forward_passes", "Forward passes", True): _forwards,
    Column("backward_passes", "Backward passes", True): _backwards,
    Column("declared_state_bytes", "Declared state", True): _declared_state,
    Column("measured_state_bytes", "Measured state", True): _measured_state,
    Column("declared_scratch_bytes", "Declared scratch", True): _scratch,
}
"""Column -> what makes its cells."""
