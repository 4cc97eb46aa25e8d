"""What every number on the page means, and where it was read."""

from __future__ import annotations

from bench.records import Measurement
from reports import units
from reports.headline import BASES
from reports.load import Tables
from reports.run import Run
from reports.table import MARKS, Cell, Column, Table, table

TITLE = "How it was measured"
ORDER = 80
SCOPE = "appendix"
FOLD_ABOVE = None

_COLUMNS = (
    Column("metric", "Number"),
    Column("unit", "Unit"),
    Column("definition", "Definition"),
    Column("quality", "Quality"),
    Column("source", "Read from"),
    Column("phases", "Phases"),
)
_STEPS = "wall clock around each step of time runs"
_ANSWERS = "the answers to the held-back examples"
_DERIVED = (
    ("peak memory (host)", "B", f"{BASES['host'].capitalize()}: host_peak_bytes minus "
     "host_baseline_bytes, both of phase 'run'.", "host_peak_bytes, host_baseline_bytes"),
    ("peak memory (device)", "B", f"{BASES['device'].capitalize()}: "
     "device_allocated_peak_bytes of phase 'run', else of 'train'. It is the headline where a "
     "run has it.",
     "device_allocated_peak_bytes"),
    ("÷ weights", "1", "Peak memory over the bytes of the weights alone.", "the loaded model"),
    ("step time", "s", "Median over all steps after the warm-up, with the interquartile range "
     "(linear quartiles), over all seeds together.", _STEPS),
    ("device-hours (train)", "h", "Seconds in training steps, warm-up included, times the number "
     "of devices (one), over 3600; mean over seeds. The machine is named beside it.", _STEPS),
    ("outside the run", "s", "Seconds of the whole process minus phase_self_seconds of all its "
     "phases: start of the interpreter, libraries, end.", "wall_seconds, phase_self_seconds"),
    ("energy, polled", "%", "How far the mean of energy_polled_joules is from that of "
     "energy_joules. Either is that of the whole job, or else the sum over its devices.",
     "energy_polled_joules, energy_joules"),
    ("accuracy", "fraction", "Right answers over held-back examples after the last step, never "
     "the best step. ± is the binomial standard error sqrt(p (1 - p) / n); of several "
     "seeds it is their mean, with their sample standard deviation (sd) beside it.", _ANSWERS),
    ("majority class", "fraction", "Accuracy of always giving the most frequent true class.",
     "the labels of the held-back examples"),
    ("zero-shot", "fraction", "Accuracy before any step, on the same model, prompt and examples.",
     _ANSWERS),
    ("p (exact)", "1", "Two-sided exact McNemar test: with b and c the examples that only one of "
     "the two answers rightly, min(1, 2 P(X <= min(b, c))), X binomial(b + c, 1/2).", _ANSWERS),
)  # fmt: skip


def rows(tables: Tables) -> Table:
    """Return the measured metrics in use, then the numbers that the report derives from runs."""
    if not tables.entries:
        return table(_COLUMNS, [])
    used = sorted({m.metric for run in tables.entries for m in _numbers(run)})
    derived = [
        (
            Cell(name, name),
            Cell(unit, unit),
            Cell(text, text),
            Cell("derived here", "derived"),
            Cell(source, source),
            Cell(units.DASH),
        )
        for name, unit, text, source in _DERIVED
    ]
    return table(_COLUMNS, [*(_metric(name, tables) for name in used), *derived])


def _metric(name: str, tables: Tables) -> tuple[Cell, ...]:
    taken = [m for run in tables.entries for m in _numbers(run) if m.metric == name]
    qualities = " ".join(
        f"{MARKS[quality][0]} {quality}".strip() + ","
        for quality in MARKS
        if quality in {m.quality for m in taken}
    ).rstrip(",")
    sources = "; ".join(sorted({m.source for m in taken}))
    phases = ", ".join(dict.fromkeys(m.phase for m in taken))
    told = [r.record.definitions[name] for r in tables.entries if name in r.record.definitions]
    unit = taken[0].unit
    # Records of two versions may define a metric differently; then both definitions stand here.
    definition = " / ".join(dict.fromkeys(metric.definition for metric in told))
    return (
        Cell(name, name, kind="code"),
        Cell(unit, unit),
        Cell(definition, definition),
        Cell(qualities, qualities),
        Cell(sources, sources),
        Cell(phases, phases),
    )


def _numbers(run: Run) -> list[Measurement]:
    return [*run.record.measurements, *run.record.predicted]
