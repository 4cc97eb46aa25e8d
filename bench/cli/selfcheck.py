"""``zometer doctor --selfcheck``: the verdicts as a table, and an exit code."""

from __future__ import annotations

import json
from collections import Counter

import typer
from rich.console import Console
from rich.table import Table

from bench.selfcheck.verdict import Verdict

_WRONG = 3
_COLOURS = {"ok": "green", "wrong": "bold red", "unavailable": "yellow", "told": "cyan"}
_WIDTH = 124
_UNITS = {"B": (2**20, "MiB"), "s": (1e-3, "ms")}


def run(as_json: bool) -> None:
    """Check everything; exit with 3 where a meter lies."""
    from bench.selfcheck import everything  # why here: it imports the models

    console = Console(stderr=True)
    found: list[Verdict] = []
    with console.status("allocating, sleeping, working ...") as status:
        for verdict in everything.verdicts():
            found.append(verdict)
            status.update(f"{verdict.meter}: {verdict.case}")
    wrong = [v for v in found if v.state == "wrong"]
    if as_json:
        body = {"verdicts": [v.model_dump() for v in found], "wrong": len(wrong)}
        print(json.dumps(body, indent=1))
    else:
        show(found)
    if wrong:
        raise typer.Exit(_WRONG)


def show(found: list[Verdict]) -> None:
    """Print a row a check, and the count of each verdict."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    table = Table(box=None, pad_edge=False)
    for heading in ("meter", "case", "verdict"):
        table.add_column(heading, overflow="fold")
    for heading in ("known", "measured", "off by", "may be"):
        table.add_column(heading, justify="right", no_wrap=True)
    for verdict in found:
        table.add_row(*row(verdict))
    console.print(table)
    counts = Counter(v.state for v in found)
    told = ", ".join(f"{n} {state}" for state, n in counts.items())
    console.print(f"\n{len(found)} checks: {told}.", highlight=False)
    for verdict in found:
        if verdict.detail and verdict.state != "told":
            what = f"{verdict.meter}, {verdict.case}: {verdict.detail}"
            console.print(what, style=_COLOURS[verdict.state], highlight=False)


def row(verdict: Verdict) -> tuple[str, ...]:
    """Return the cells of a verdict: bytes in MiB, seconds in ms, and what it is off by."""
    divisor, unit = _UNITS.get(verdict.unit, (1.0, verdict.unit))

    def shown(value: float | None, digits: int = 3) -> str:
        return "" if value is None else f"{value / divisor:,.{digits}f} {unit}"

    off = ""
    if verdict.expected is not None and verdict.measured is not None:
        difference = verdict.measured - verdict.expected
        share = f" ({100 * difference / abs(verdict.expected):+.2f} %)" if verdict.expected else ""
        off = f"{difference / divisor:+,.3f}{share}"
    state = f"[{_COLOURS[verdict.state]}]{verdict.state}[/]"
    return (
        verdict.meter,
        verdict.case,
        state,
        shown(verdict.expected),
        shown(verdict.measured),
        off,
        shown(verdict.tolerance),
    )
