"""What must be said against the numbers: runs not to be used, doubts, unlike machines."""

from __future__ import annotations

from collections.abc import Iterator

from reports import units
from reports.doubts import SYMBOLS, doubts
from reports.load import Tables
from reports.run import Run

MOST_NAMES = 8
"""Names in one sentence; tables have them all."""


def invalid(tables: Tables) -> Iterator[str]:
    """Tell which runs must not be used, before anything is said of the others."""
    runs = [run for run in tables.entries if run.is_invalid]
    if not runs:
        return
    who = list(dict.fromkeys(f"{run.series} on `{run.spec.model}`" for run in runs))
    more = f" and {len(who) - MOST_NAMES} more" if len(who) > MOST_NAMES else ""
    yield (
        f"Measurements of {len(runs)} of {units.plural(len(tables.entries), 'run')} must not be "
        f"used ({_flags(runs, 'invalid')}): {', '.join(who[:MOST_NAMES])}{more}. They are kept "
        f"and marked {SYMBOLS['invalid']} wherever they stand, and left out of every comparison "
        "told here."
    )


def doubtful(tables: Tables) -> Iterator[str]:
    """Tell what to look at again before the numbers are used."""
    runs = [r for r in tables.entries if any(f.severity == "suspect" for f in r.record.flags)]
    if runs:
        yield (
            f"Measurements are suspect in {units.plural(len(runs), 'run')} "
            f"({_flags(runs, 'suspect')}), marked {SYMBOLS['suspect']}; see the doubts below."
        )
    timed = [r.record for r in tables.entries if r.record.spec.measure == "time"]
    seen = {r.environment.model_dump_json() for r in timed if r.environment}
    if len(seen) > 1:
        yield (
            f"The timed runs come from {len(seen)} environments (see the end of the page): "
            "compare times between them with care."
        )
    random = {r.spec.model for r in tables.entries if r.record.evaluations and _random(r)}
    if random:
        names = ", ".join(f"`{name}`" for name in sorted(random))
        yield f"Weights drawn at random, so accuracy means nothing there: {names}."


def _flags(runs: list[Run], severity: str) -> str:
    """Return the flags of one severity, with the number of runs that carry each."""
    told = doubts([run.record for run in runs])
    return ", ".join(f"`{d.name}` in {d.carried}" for d in told if d.severity == severity)


def _random(run: Run) -> bool:
    return run.record.model is not None and run.record.model.source == "random"
