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

from bench import executor, snapshot, store, suite
from bench.cell import Cell
from bench.records import RECORD, SEVERITIES, RunRecord, UserError

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
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 3 if a run carries an invalid flag.")
    ] = False,
    retry_invalid: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Run again, N times at most, what carries an invalid flag."
        ),
    ] = 0,
    memory_snapshot: Annotated[
        bool,
        typer.Option(
            "--memory-snapshot",
            help="Keep torch's allocator snapshot of runs on CUDA, for pytorch.org/memory_viz.",
        ),
    ] = False,
) -> None:
    """Run a suite. Finished runs are kept, so the same command resumes after an interrupt."""
    cells = chosen(name, only)
    if dry_run:
        _show_plan(cells, out, as_json)
        return
    if memory_snapshot:
        _refuse_needless_snapshot(cells)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the running cell as well
    with store.opened(out):
        done = store.finished(out, cells)
        if as_json:
            for record in done.values():
                _tell(record, out)
        try:
            store.queue_again(out, cells, done, retry_invalid)
            missing = [c for c in cells if c.spec.key not in done]
            with _View(len(cells), len(done), as_json) as view:
                while missing:
                    for record in executor.run(out, missing, view.progress, memory_snapshot):
                        done[record.key] = record
                        view.ended(record, out)
                    missing = store.queue_again(out, missing, done, retry_invalid)
                    view.again(len(missing))
        except KeyboardInterrupt:
            print(
                f"\nInterrupted: {len(done)} of {len(cells)} runs are finished and kept in {out}. "
                "Give the same command again to go on.",
                file=sys.stderr,
            )
            raise typer.Exit(_INTERRUPTED) from None
    folder = out / cells[0].suite
    records = [done[c.spec.key] for c in cells]
    _summarise(records, folder, as_json)
    _leave(records, strict)


def chosen(name: str, only: str) -> list[Cell]:
    """Return the runs of a suite whose keys match; none is an error."""
    loaded = suite.load(name)
    cells = [c for c in loaded.cells if fnmatch.fnmatch(c.spec.key, only)]
    if not cells:
        raise UserError(
            f"--only '{only}' matches none of the {len(loaded.cells)} runs. Their keys: "
            f"zometer run {shlex.quote(name)} --dry-run"
        )
    return cells


def _refuse_needless_snapshot(cells: list[Cell]) -> None:
    reasons = [snapshot.needs_cuda(c.spec.device) for c in cells]
    if all(reasons):
        raise UserError(
            f"--memory-snapshot: {reasons[0]}. None of the {len(cells)} runs is on CUDA; leave "
            "the option out, or set device in the suite."
        )


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

    def again(self, count: int) -> None:
        """Take runs back that are queued anew."""
        self._bar.advance(self._all, -count)

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
    flags = [flag.model_dump() for flag in record.flags]
    print(json.dumps({**line, "flags": flags, "record": str(path)}), flush=True)


def _summarise(records: list[RunRecord], folder: Path, as_json: bool) -> None:
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
        for line in _flag_lines(records):
            console.print(line, highlight=False, soft_wrap=True)
        if others:
            console.print(
                f"{len(others)} finished runs in {folder} are not among these; a report shows "
                f"them too: {', '.join(others)}",
                highlight=False,
                soft_wrap=True,
            )
        print(f"Results: {folder}   Next: zometer report {shlex.quote(str(folder))}")


def _flag_lines(records: list[RunRecord]) -> list[str]:
    """Say how many flags of each severity there are, and each once with the runs it is of."""
    lines = []
    for severity in SEVERITIES:
        runs: dict[str, list[str]] = {}
        for record in records:
            for name in dict.fromkeys(f.name for f in record.flags if f.severity == severity):
                runs.setdefault(name, []).append(record.key)
        if not runs:
            continue
        count = sum(f.severity == severity for r in records for f in r.flags)
        lines.append(f"{severity}: {count} flag{'s' if count > 1 else ''}")
        lines += [f"  {name}: {', '.join(keys)}" for name, keys in sorted(runs.items())]
    return lines


def _leave(records: list[RunRecord], strict: bool) -> None:
    """Turn how the runs ended into the exit code."""
    if any(r.status in ("failed", "timed_out") for r in records):
        raise typer.Exit(_INCOMPLETE)
    if strict and any(map(store.invalid, records)):
        raise typer.Exit(_ENVIRONMENT)
    if all(r.status == "unsupported" for r in records):
        raise typer.Exit(_ENVIRONMENT)
