"""``zometer run``: expand a suite, run what is missing, keep what is done."""

from __future__ import annotations

import fnmatch
import json
import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench import executor, store, suite
from bench.cell import Cell
from bench.records import RECORD, RunRecord, UserError

_INTERRUPTED = 130
_INCOMPLETE = 4
_ENVIRONMENT = 3
_MARKS = {
    "completed": "[green]completed[/]",
    "out_of_memory": "[magenta]out_of_memory[/]",
    "failed": "[red]failed[/]",
    "timed_out": "[red]timed_out[/]",
    "unsupported": "[yellow]unsupported[/]",
}


def run(
    name: Annotated[
        str, typer.Argument(metavar="SUITE", help="A built-in suite, or a .toml file.")
    ],
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("results"),
    only: Annotated[
        str, typer.Option(metavar="KEY-GLOB", help="Run keys to take, such as 'wall--*'.")
    ] = "*",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the runs, make none.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a run.")] = False,
) -> None:
    """Run a suite. Finished runs are kept, so the same command resumes after an interrupt."""
    cells = _chosen(name, only)
    if dry_run:
        _show_plan(cells, out, as_json)
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the running cell as well
    with store.opened(out):
        done = store.finished(out, cells)
        missing = [c for c in cells if c.spec.key not in done]
        if as_json:
            for record in done.values():
                _tell(record, out)
        try:
            with _View(len(cells), len(done), as_json) as view:
                for record in executor.run(out, missing, view.progress):
                    done[record.key] = record
                    view.ended(record, out)
        except KeyboardInterrupt:
            print(
                f"\nInterrupted: {len(done)} of {len(cells)} runs are finished and kept in {out}. "
                "Give the same command again to go on.",
                file=sys.stderr,
            )
            raise typer.Exit(_INTERRUPTED) from None
    folder = out / cells[0].suite
    _summarise([done[c.spec.key] for c in cells], folder, as_json)


def _chosen(name: str, only: str) -> list[Cell]:
    loaded = suite.load(name)
    cells = [c for c in loaded.cells if fnmatch.fnmatch(c.spec.key, only)]
    if not cells:
        raise UserError(
            f"--only '{only}' matches none of the {len(loaded.cells)} runs. Their keys: "
            f"zometer run {shlex.quote(name)} --dry-run"
        )
    return cells


def _show_plan(cells: list[Cell], out: Path, as_json: bool) -> None:
    done = store.finished(out, cells)
    for cell in cells:
        key = cell.spec.key
        state = done[key].status if key in done else "to run"
        if as_json:
            print(json.dumps({"key": key, "state": state, "spec": cell.spec.model_dump()}))
        else:
            print(f"{state:13} {key}")


class _View:
    """The live view of a sweep: a bar on a terminal, a line a run elsewhere."""

    def __init__(self, total: int, done: int, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._all = self._bar.add_task("runs ", total=total, completed=done, detail="")
        self._one = self._bar.add_task("steps", total=None, detail="")

    def __enter__(self) -> _View:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def progress(self, cell: Cell, phase: str, steps: int) -> None:
        spec = cell.spec
        detail = f"{spec.group}: {spec.method} on {spec.model}, {phase}"
        self._bar.update(self._one, total=spec.steps, completed=steps, detail=detail)

    def ended(self, record: RunRecord, out: Path) -> None:
        self._bar.advance(self._all)
        if self._as_json:
            _tell(record, out)
            return
        mark = _MARKS.get(record.status, record.status)
        self._console.print(
            f"{mark} {record.key} [dim]{record.wall_seconds:.0f} s[/]",
            highlight=False,
            soft_wrap=True,
        )


def _tell(record: RunRecord, out: Path) -> None:
    path = out / record.suite / record.key / RECORD
    line = {"key": record.key, "status": record.status, "reason": record.reason}
    print(json.dumps({**line, "record": str(path)}), flush=True)


def _summarise(records: list[RunRecord], folder: Path, as_json: bool) -> None:
    bad = [r for r in records if r.status in ("failed", "timed_out")]
    keys = {r.key for r in records}
    others = sorted(p.parent.name for p in folder.glob(f"*/{RECORD}") if p.parent.name not in keys)
    odd = [r for r in records if r.status in ("failed", "timed_out", "unsupported")]
    if not as_json:
        counts = Table("status", "runs")
        for status in sorted({r.status for r in records}):
            counts.add_row(status, str(sum(r.status == status for r in records)))
        console = Console(stderr=True)
        console.print(counts)
        for record in odd:
            console.print(f"{record.key}: {record.reason}", highlight=False, soft_wrap=True)
        if others:
            console.print(
                f"{len(others)} finished runs in {folder} are not among these; a report shows "
                f"them too: {', '.join(others)}",
                highlight=False,
                soft_wrap=True,
            )
        print(f"Results: {folder}   Next: zometer report {shlex.quote(str(folder))}")
    if bad:
        raise typer.Exit(_INCOMPLETE)
    if len(odd) == len(records):
        raise typer.Exit(_ENVIRONMENT)
