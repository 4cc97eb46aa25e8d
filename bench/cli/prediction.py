"""``zometer bench prediction``: predicted memory beside the real, on this machine's CPU."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.records.prediction_check import (
    VERDICTS,
    CheckCell,
    CheckedCell,
    PredictionCheck,
    key_of,
    write_prediction_check,
)

_DIFFERS, _INCOMPLETE = 1, 4
_WORKERS = 2


def prediction(
    variants: Annotated[
        str, typer.Option(help="training, evaluation, generation, ...; all of them if left out.")
    ] = "",
    methods: Annotated[str, typer.Option(help="Methods, comma separated.")] = "",
    families: Annotated[str, typer.Option(help="opt, roberta, llama.")] = "",
    dtypes: Annotated[str, typer.Option(help="float32, bfloat16, float16.")] = "",
    attention: Annotated[str, typer.Option(help="sdpa, eager.")] = "",
    tunings: Annotated[str, typer.Option(help="full, lora, ...")] = "",
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes, of 1 GiB or so each; 2 where there are cores."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the record goes, in a folder.")] = Path(
        "results/prediction_check"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="The record, as one JSON line.")] = False,
) -> None:
    """Compare predicted memory with that of real runs on the CPU, over a grid of runs.

    Each run is traced on fake tensors, and made for real under torch's profiler, which sees every
    allocation; the most live bytes of every phase must be the same within 4 KiB. Models have real
    widths and vocabularies, and two blocks. What is finished is kept: the same command goes on
    where it was stopped, as long as code and libraries are the same.

    Exit code 1 where a run differs by more than is known, 4 where one could not be compared.
    """
    from bench.predict import checking, grid  # why here: they import torch

    asked = {
        "methods": _names(methods),
        "families": _names(families),
        "dtypes": _names(dtypes),
        "attention": _names(attention),
        "tunings": _names(tunings),
    }
    cells = grid.cells(asked, _names(variants))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the processes as well
    console = Console(stderr=True)
    record = _compared(out, cells, workers or _at_once(), console)
    path = write_prediction_check(out, record)
    checking.finished(path.parent)
    if as_json:
        print(record.model_dump_json())
    else:
        show(record, Console())
        print(f"Record: {path}   Next: zometer report {shlex.quote(str(out))}")
    counts = record.counts()
    if counts["unable"]:
        raise typer.Exit(_INCOMPLETE)
    if counts["differs"]:
        raise typer.Exit(_DIFFERS)


def _compared(
    out: Path, cells: Sequence[CheckCell], workers: int, console: Console
) -> PredictionCheck:
    from bench import environment  # why here: see prediction
    from bench.cell import now
    from bench.predict import checking, grid

    here, begun = environment.read("cpu"), now()
    folder = out / key_of(cells)

    def record(found: list[CheckedCell]) -> PredictionCheck:
        return PredictionCheck(
            key=key_of(cells),
            started_at=begun,
            wall_seconds=sum(one.seconds for one in found),
            environment=here,
            layers=grid.LAYERS,
            variants={name: v.title for name, v in grid.VARIANTS.items()},
            left_out=grid.LEFT_OUT,
            known=grid.known(),
            cells=found,
        )

    judge = record([])
    made = checking.compared(folder, cells, here, workers)
    shown = track(made, "runs", len(cells), console=console, disable=not console.is_terminal)
    found = []
    kept = 0
    for one, was_kept in shown:
        found.append(one)
        kept += was_kept
        if judge.verdict(one) in ("differs", "unable"):
            console.print(told(judge, one), highlight=False, soft_wrap=True)
    if kept:
        console.print(f"{kept} of {len(cells)} runs were kept from an earlier command.")
    return record(found)


def told(judge: PredictionCheck, one: CheckedCell) -> str:
    """Return a run that is not as it should be, as one line."""
    if one.reason is not None:
        return f"could not be compared: {one.cell.name}: {one.reason}"
    phases = ", ".join(f"{phase} {error:+,}" for phase, error in judge.unexplained(one).items())
    return (
        f"differs: {one.cell.name}: peak {one.error_bytes:+,} B of {one.peak_bytes:,}; "
        f"by phase: {phases}"
    )


def show(record: PredictionCheck, console: Console) -> None:
    """Print how many runs of each variant agree, and the known differences."""
    from bench.predict import grid  # why here: see prediction

    table = Table(box=None, pad_edge=False)
    table.add_column("variant")
    for heading in ("runs", *VERDICTS, "largest error of a peak"):
        table.add_column(heading, justify="right")
    for name in dict.fromkeys(one.cell.variant for one in record.cells):
        part = record.model_copy(
            update={"cells": [one for one in record.cells if one.cell.variant == name]}
        )
        made = [one.error_bytes for one in part.cells if one.reason is None]
        worst = f"{max(made, key=abs):+,} B" if made else ""
        counts = [str(count or "") for count in part.counts().values()]
        table.add_row(name, str(len(part.cells)), *counts, worst)
    console.print(table)
    for known in record.known:
        several = [error for _, _, error in record.explained(known)]
        if several:
            span = f"{min(several):+,} to {max(several):+,} B"
            where = ", ".join(known.phases)
            console.print(f"known, {len(several)} x {span} in {where}: {known.why}",
                          highlight=False, soft_wrap=True)  # fmt: skip
    # A part of the grid can't tell: not all runs that a difference is of show it.
    whole = [one.cell for one in record.cells] == grid.cells({})
    for known in record.unneeded() if whole else ():
        console.print(f"no longer seen, strike it from known_differences.toml: {known.why}",
                      highlight=False, soft_wrap=True)  # fmt: skip


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _at_once() -> int:
    return min(_WORKERS, os.cpu_count() or 1)
