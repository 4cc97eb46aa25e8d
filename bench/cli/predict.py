"""``zometer predict``: the memory of a suite's runs, without running them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import store
from bench.cell import EVENTS, Cell
from bench.cli import asked
from bench.cli.fit import size
from bench.cli.run import chosen
from bench.predict import against_papers, measured
from bench.predict.calibration import Calibration, read
from bench.predict.predict import predict_all
from bench.predict.prediction import Prediction
from bench.records import RECORD, RunRecord, UserError, read_record, write_record

_INCOMPLETE = 4
_REAL_TEXT = (
    "Of tasks with text, minibatches 0 and 1 are traced: lower bounds where a later one is longer."
)


def predict(
    name: Annotated[
        str | None,
        typer.Argument(metavar="SUITE", help="A built-in suite, or a .toml file."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Results folder.")] = Path("results"),
    only: Annotated[
        str, typer.Option(metavar="KEY-GLOB", help="Run keys to take, such as 'wall--*'.")
    ] = "*",
    full: Annotated[
        bool, typer.Option("--full", help="Trace all layers, so that reserved memory is too.")
    ] = False,
    published: Annotated[
        bool, typer.Option("--published", help="What papers printed, beside its prediction.")
    ] = False,
    calibration: asked.OwnConstants = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a run.")] = False,
) -> None:
    """Predict the memory of a suite's runs; a run that is made takes its prediction over."""
    if published:
        _published(out, as_json)
        return
    if name is None:
        raise UserError("Name a suite (zometer list suites), or ask for --published.")
    cells, constants = chosen(name, only), read(calibration)
    with store.opened(out):
        failed = _all(cells, out, full, constants, as_json)
    folder = out / cells[0].suite
    if not as_json:
        print(f"Predictions: {folder}   Next: zometer report {shlex.quote(str(folder))}")
    if failed:
        raise typer.Exit(_INCOMPLETE)


def _all(cells: list[Cell], out: Path, full: bool, constants: Calibration, as_json: bool) -> int:
    """Predict and write all; return how many could not be."""
    table = Table(box=None, pad_edge=False)
    for heading in ("group", "method", "model", "digest"):
        table.add_column(heading, overflow="fold")
    for heading in ("allocated", "process", "less measured"):
        table.add_column(heading, justify="right")
    reasons: dict[str, list[str]] = {}
    console = Console(stderr=True)
    made = predict_all([cell.spec for cell in cells], emulate=None, full=full)
    shown = track(made, "runs", len(cells), console=console, disable=not console.is_terminal)
    for cell, found in zip(cells, shown, strict=True):
        if isinstance(found, UserError):
            reasons.setdefault(str(found), []).append(cell.spec.key)
            if as_json:
                print(json.dumps({"key": cell.spec.key, "reason": str(found)}), flush=True)
            continue
        found = found.calibrated(constants)
        folder = cell.folder(out)
        path = measured.write(folder, measured.record_of(cell, found))
        record = _told_to(folder, path)
        if as_json:
            told = {"key": cell.spec.key, "prediction": str(path), "figures": found.as_dict()}
            print(json.dumps(told), flush=True)
        table.add_row(*_named(cell), *_sizes(found), _error(record))
    if not as_json:
        Console().print(table)
        if any(measured.is_real_text(cell.spec) for cell in cells):
            console.print(_REAL_TEXT)
        for reason, keys in reasons.items():
            console.print(f"{len(keys)} not predicted: {reason}", highlight=False)
    return sum(map(len, reasons.values()))


def _told_to(folder: Path, prediction: Path) -> RunRecord | None:
    """Put a prediction into the record of a run that was made; return that record, if there is.

    Where there is none, and no run under way, the prediction is the record: reports show it, and
    ``zometer run`` still makes the run.
    """
    if (folder / RECORD).exists():
        record = read_record(folder / RECORD)
        if record.reason != measured.REASON:
            write_record(folder, joined := measured.joined(folder, record))
            return joined
    if not (folder / EVENTS).exists():
        write_record(folder, read_record(prediction))
    return None


def _named(cell: Cell) -> tuple[str, ...]:
    """Return what tells a run from others: a whole key is too wide for a terminal."""
    spec = cell.spec
    return spec.group, spec.method, spec.model, spec.digest()


def _sizes(found: Prediction) -> tuple[str, str]:
    needs = found.needs[0]
    if found.emulate == "cpu":
        return size(needs.traced), ""
    return size(needs.allocated), size(needs.process.expected)


def _error(record: RunRecord | None) -> str:
    """Say how far a prediction is from what was measured."""
    for m in record.predicted if record else []:
        if m.metric == "predicted_minus_measured_allocated_bytes" and m.phase == "run":
            return f"{int(m.value or 0):+,} B"
    return ""


def _published(out: Path, as_json: bool) -> None:
    rows = against_papers.compared()
    path = against_papers.write(out, rows)
    if as_json:
        print(path.read_text(encoding="utf-8"), end="")
        return
    table = Table(*against_papers.HEADINGS[:-1], box=None, pad_edge=False)
    notes: dict[str, int] = {}
    for row in rows:
        *texts, note = row.texts()
        if row.reason:
            notes[f"not predicted: {note}"] = notes.get(f"not predicted: {note}", 0) + 1
            continue
        if row.assumed:
            notes.setdefault(f"* {note}: not printed, so it judges nothing", 0)
            texts[2] += " *"
        table.add_row(*texts)
    Console().print(table)
    print(f"\n{against_papers.NOTE}")
    for note, count in notes.items():
        print(f"{count} {note}" if count else note)
    print(f"Written: {path}")
