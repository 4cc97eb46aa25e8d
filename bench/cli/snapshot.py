"""``zometer snapshot``: a predicted step for torch's memory viewer, and a real one checked."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.cli import asked
from bench.cli.fit import size
from bench.cli.run import chosen
from bench.predict import gpus, snapshot
from bench.predict.gpus import GIB
from bench.predict.snapshot import Comparison
from bench.predict.snapshot_run import write
from bench.records import RunSpec, UserError

app = typer.Typer(
    help="Memory snapshots of torch: predicted ones written, real ones replayed and compared.",
    no_args_is_help=True,
)


@app.command()
def export(
    suite: Annotated[
        str | None,
        typer.Argument(metavar="[SUITE]", help="A suite to take the run from, with --only."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The file.")] = Path("snapshot.pickle"),
    only: Annotated[
        str, typer.Option(metavar="KEY-GLOB", help="The run of the suite: its key or a pattern.")
    ] = "*",
    model: asked.Model | None = None,
    method: asked.Method | None = None,
    dtype: asked.Dtype = "fp16",
    batch: asked.Batch = 1,
    seq: asked.Seq = 400,
    tuning: asked.Tuning = "full",
    option: asked.Option = [],  # noqa: B006  # why: typer reads it, nobody changes it
    autocast: asked.Autocast = False,
    checkpointing: asked.Checkpointing = False,
    device: Annotated[
        str | None,
        typer.Option(help="A GPU, such as a100-80gb: its memory is the limit. None if left out."),
    ] = None,
    own_gpus: asked.OwnGpus = None,
    expandable: Annotated[
        bool, typer.Option("--expandable", help="With expandable segments.")
    ] = False,
) -> None:
    """Write a run's predicted step as a snapshot that torch's viewer opens; nothing is run.

    The run is one of a suite (SUITE --only KEY), or what --model, --method and so on say, as for
    zometer fit.
    """
    gpu = gpus.find(device, own_gpus) if device else None
    if suite is not None:
        if model or method:
            raise UserError("Expected a suite or --model and --method, got both. Leave one out.")
        spec = _one(suite, only)
    elif model and method:
        spec = asked.spec_of(
            model=model, method=method, dtype=dtype, batch_size=batch, seq_len=seq, tuning=tuning,
            options=asked.options_of(option), autocast="bfloat16" if autocast else None,
            checkpointing=checkpointing,
        )  # fmt: skip
    else:
        raise UserError("Expected a suite with --only KEY, or --model and --method, got neither.")
    made = write(spec, out, gpu, expandable)
    print(
        f"{asked.title(spec)} {made.events:,} entries of two steps as on CUDA, "
        f"{size(made.requested_peak)} asked for and {size(made.reserved_peak)} reserved at most.\n"
        f"Written: {out}   Open it at https://docs.pytorch.org/memory_viz, or: "
        f"python -m torch.cuda._memory_viz trace_plot {out} -o {out.with_suffix('.html')}"
    )


@app.command()
def compare(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What _dump_snapshot wrote.")],
    capacity: Annotated[
        float | None,
        typer.Option(help="GiB that torch had, where it emptied its cache on the way."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a device.")] = False,
) -> None:
    """Replay a snapshot's requests through the model of the allocator, beside its own figures.

    Segments are expandable, limited and of the size that the snapshot says.
    """
    found = snapshot.load(file)
    settings = snapshot.settings_of(found)
    if capacity is not None:
        settings = replace(settings, capacity=int(capacity * GIB))
    compared = snapshot.compare(found, settings)
    if as_json:
        for one in compared:
            print(json.dumps({**asdict(one), "error": one.error, "agrees": one.agrees}))
        return
    kind = "expandable" if settings.expandable else "native"
    for one in compared:
        print(f"Device {one.device}: {one.events:,} requests, {kind} segments. {_verdict(one)}")
        Console().print(_table(one))


def _one(suite: str, only: str) -> RunSpec:
    """Return the one run of a suite that is meant."""
    cells = chosen(suite, only)
    if len(cells) > 1:
        keys = ", ".join(cell.spec.key for cell in cells[:3])
        raise UserError(
            f"--only '{only}' matches {len(cells)} runs of '{suite}', a snapshot is of one: "
            f"{keys}{' ...' if len(cells) > 3 else ''}"
        )
    return cells[0].spec


def _verdict(one: Comparison) -> str:
    if one.agrees:
        return "The model agrees to the byte."
    words = [f"The model reserves {100 * one.error:+.2f} % at the peak."]
    if not one.complete:
        words.append("The trace begins with memory in use: how that came about is guessed.")
    if one.streams > 1:
        words.append(f"The trace is of {one.streams} streams, which the model takes as one.")
    return " ".join(words)


def _table(one: Comparison) -> Table:
    table = Table("figure", "snapshot", "model", "difference", box=None, pad_edge=False)
    table.add_row("reserved, peak", *_sizes(one.real_peak, one.model_peak))
    table.add_row("reserved, at the end", *_sizes(one.real.reserved, one.model.reserved))
    table.add_row("allocated, at the end", *_sizes(one.real.allocated, one.model.allocated))
    segments = (one.real.segments, one.model.segments)
    table.add_row("segments, at the end", *map(str, segments), f"{segments[1] - segments[0]:+d}")
    table.add_row("asked for, peak", size(one.requested_peak), "", "the same requests")
    return table


def _sizes(real: int, model: int) -> tuple[str, str, str]:
    return size(real), size(model), f"{model - real:+,} B"
