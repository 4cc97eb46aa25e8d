"""The models and tasks that were really loaded, where they came from, and what to know of them."""

from __future__ import annotations

from collections.abc import Iterator

from bench.records import ModelFacts, TaskFacts
from reports import units
from reports.load import Tables
from reports.table import Cell, Column, Table, table

TITLE = "Models and tasks"
ORDER = 75
SCOPE = "appendix"
FOLD_ABOVE = 40

_COLUMNS = (
    Column("name", "Name"),
    Column("kind", "What"),
    Column("facts", "Facts"),
    Column("source", "From"),
    Column("note", "To know"),
)


def rows(tables: Tables) -> Table:
    """Return one row per model and per task, as often as their facts differ."""
    return table(_COLUMNS, dict.fromkeys(_found(tables)))


def _found(tables: Tables) -> Iterator[tuple[Cell, ...]]:
    records = [run.record for run in tables.entries]
    yield from (_model(record.model) for record in records if record.model)
    yield from (_task(record.task) for record in records if record.task)


def _model(m: ModelFacts) -> tuple[Cell, ...]:
    facts = (
        f"{m.family}; {m.parameters:,} parameters, {m.trained_parameters:,} of them trained; "
        f"{units.size(m.parameter_bytes)}"
    )
    return _row(m.name, "model", facts, m.source, m.note)


def _task(t: TaskFacts) -> tuple[Cell, ...]:
    facts = f"{t.train_n:,} training and {t.eval_n:,} held-back examples"
    if t.labels:
        facts += f"; labels {', '.join(t.labels)}"
    if t.prompt:
        facts += f"; prompt '{t.prompt}'"
    return _row(t.name, "task", facts, t.source, t.note)


def _row(name: str, kind: str, facts: str, source: str, note: str | None) -> tuple[Cell, ...]:
    told = note or units.DASH
    return (Cell(name, name), Cell(kind, kind), Cell(facts, facts), Cell(source, source),
            Cell(told, note))  # fmt: skip
