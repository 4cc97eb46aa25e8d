"""Where it ran: one column per environment, the number of runs at its head."""

from __future__ import annotations

from bench.records import Environment
from reports import units
from reports.load import Tables
from reports.table import Cell, Column, Table, table

TITLE = "Environment"
ORDER = 90
SCOPE = "appendix"
FOLD_ABOVE = None


def rows(tables: Tables) -> Table:
    """Return one row per property; a run that died too early to say is counted in the note."""
    counted: dict[str, tuple[Environment, int]] = {}
    found = [run.record.environment for run in tables.entries]
    others = [one.environment for one in tables.speeds]
    others += [one.environment for one in tables.checks]
    for environment in (*found, *others):
        if environment:
            text = environment.model_dump_json()
            counted[text] = (environment, counted.get(text, (environment, 0))[1] + 1)
    if not counted:
        return Table((), ())
    told = [_told(environment) for environment, _ in counted.values()]
    heads = [units.plural(n, "run") for _, n in counted.values()]
    columns = [Column(f"environment_{i + 1}", head) for i, head in enumerate(heads)]
    names = dict.fromkeys(name for properties in told for name in properties)
    body = [
        [Cell(name, name), *(_cell(properties.get(name, "")) for properties in told)]
        for name in names
    ]
    silent = sum(run.record.environment is None for run in tables.entries)
    note = (
        f"{units.plural(silent, 'run')} ended before it could say where it ran." if silent else ""
    )
    return table([Column("property", "Property"), *columns], body, note)


def _cell(text: str) -> Cell:
    return Cell(text or units.DASH, text)


def _told(e: Environment) -> dict[str, str]:
    """Return what an environment says of itself, in words."""
    dirty = {True: " with local changes", False: "", None: ""}[e.dirty]
    return {
        "zometer": e.zometer,
        "commit": f"{e.commit}{dirty}" if e.commit else "unknown",
        "devices": ", ".join(e.devices) or "none but the processor",
        "processor": f"{e.cpu}, {units.plural(e.cpu_cores, 'usable core')}",
        "threads": str(e.threads),
        "memory": units.size(e.memory_total_bytes),
        "noise kernel": e.noise_kernel,
        "python": e.python,
        "platform": e.platform,
        **{name: version for name, version in sorted(e.packages.items())},
        **{f"${name}": value for name, value in sorted(e.variables.items())},
    }
