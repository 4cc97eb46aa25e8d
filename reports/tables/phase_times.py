"""Where the time of a run went: its phases, each without those inside it, up to the wall time."""

from __future__ import annotations

import math

from reports import units
from reports.configurations import Configuration, Spread, configurations, spread
from reports.load import Tables
from reports.run import Run
from reports.table import Cell, Column, Table, missing, number, of_runs, table
from reports.theme import title_of

TITLE = "Time by phase"
ORDER = 14
SCOPE = "section"
FOLD_ABOVE = 20

METRIC = "phase_self_seconds"
_PHASES = ("load", "resume", "train", "anchor", "perturb", "forward", "backward", "update")
_LAST = ("evaluate", "run")
_HEADS = {"run": "between phases", "train": "train, rest"}
_NOTE = (
    "Of completed time runs, mean over seeds: seconds in a phase and in none inside it, with its "
    "share of the wall time. The phases add up to the run; what is outside of it (start of the "
    "interpreter, libraries, end) is the rest of the wall time."
)


def rows(tables: Tables) -> Table:
    """Return one row per configuration whose runs recorded the times of their phases."""
    told = [(c, timed) for c in configurations(tables) if (timed := _timed(c))]
    names = {m.phase for _, timed in told for run in timed for m in run.record.measurements
             if m.metric == METRIC}  # fmt: skip
    phases = sorted(names, key=_place)
    several = len({c.first.facet for c, _ in told}) > 1
    columns = [
        Column("method", "Method"),
        *([Column("model", "Model")] if several else []),
        *(Column(f"{phase}_seconds", _HEADS.get(phase, phase), True) for phase in phases),
        Column("outside_seconds", "outside the run", True),
        Column("wall_seconds", "Wall time", True),
    ]
    return table(columns, [_row(c, timed, phases, several) for c, timed in told], _NOTE)


def _timed(c: Configuration) -> list[Run]:
    return [
        run for run in c.completed
        if any(m.metric == METRIC and m.value is not None for m in run.record.measurements)
    ]  # fmt: skip


def _row(c: Configuration, timed: list[Run], phases: list[str], several: bool) -> list[Cell]:
    spec = c.first.spec
    name = Cell(title_of(spec.method), spec.method, c.first.setting, kind=f"method {spec.method}")
    wall = spread(run.record.wall_seconds for run in timed)
    assert wall is not None  # a configuration without timed runs has no row
    cells = [
        _seconds(spread(run.record.value(METRIC, phase) for run in timed), wall.mean)
        for phase in phases
    ]
    outside = spread(run.record.wall_seconds - _sum(run) for run in timed)
    return [
        of_runs(name, c.records),
        *([Cell(c.first.facet, spec.model)] if several else []),
        *cells,
        _seconds(outside, wall.mean),
        number(units.duration(wall.mean), wall.mean, tip=units.plural(wall.n, "run")),
    ]


def _sum(run: Run) -> float:
    """Return the seconds of all phases of a run."""
    return math.fsum(m.value or 0 for m in run.record.measurements if m.metric == METRIC)


def _seconds(seconds: Spread | None, wall: float) -> Cell:
    if seconds is None:
        return missing("No run of this configuration has the phase.")
    share = units.percent(seconds.mean / wall) if wall else ""
    tip = f"sd {units.duration(seconds.sd)} over {seconds.n} runs" if seconds.sd else ""
    return number(units.duration(seconds.mean), seconds.mean, tip=tip, sub=share)


def _place(phase: str) -> tuple[int, str]:
    order = [*_PHASES, "", *_LAST]  # phases of methods to come stand before the last ones
    return (order.index(phase if phase in order else ""), phase)
