"""``zometer bench``: the engine and the harness themselves; how fast a step is, and more."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.cli import monitor, prediction
from bench.records.step_speed import (
    STEP_SPEED,
    TEXTBOOK,
    PassSpeed,
    Spread,
    StepCase,
    StepSpeed,
    StepTimes,
)
from bench.threads import count

app = typer.Typer(help="Measure the engine itself.", no_args_is_help=True)

_INCOMPLETE = 4
_MIB = 2**20
_WIDTH = 124
_HEADINGS = (
    "forwards", "ratio", "CPU ratio", "x textbook", "extra MiB", "outside MiB", "limit", "2-pass",
)  # fmt: skip


app.command("monitor")(monitor.monitor)
app.command("prediction")(prediction.prediction)


@app.command("step")
def step(
    model: Annotated[list[str], typer.Option(help="A model, again for each.")] = ["opt-125m"],  # noqa: B006  # why: typer reads it, nobody changes it
    dtype: Annotated[list[str], typer.Option(help="float32, bfloat16 or float16.")] = ["float32"],  # noqa: B006
    shape: Annotated[list[str], typer.Option(help="BATCHxTOKENS.")] = ["8x64"],  # noqa: B006
    method: Annotated[
        list[str], typer.Option(help="A method with its options, again for each.")
    ] = ["mezo"],  # noqa: B006
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each step.")] = 7,
    textbook_rounds: Annotated[
        int, typer.Option(min=0, help="Of these, how many take the slow textbook step too.")
    ] = 3,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; as many as a run takes if left out.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    task: Annotated[str, typer.Option(help="Where minibatch and loss come from.")] = (
        "random_tokens"
    ),
    anchor_batches: Annotated[
        int, typer.Option(min=1, help="Minibatches of SVRG's anchor set.")
    ] = 1,
    noise: Annotated[bool, typer.Option(help="Time noise and memory by themselves.")] = True,
    peaks: Annotated[bool, typer.Option(help="Count bytes, in two samples more of each.")] = True,
    out: Annotated[Path, typer.Option(help="Where records go, a folder each.")] = Path(
        "results/step"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a case.")] = False,
) -> None:
    """Time a step beside the forward passes that it needs, for each model, dtype and shape.

    A fresh process a case. In it everything is taken in turns, a forward pass between any two,
    in reverse order every other round: the textbook step straight from the MeZO paper, and each
    method's step. Ratios are formed round by round; medians are shown, with their range. A method
    with a period (SVRG) is timed over whole periods. See docs/speed.md.

    A method is NAME or NAME:OPTION=VALUE,OPTION=VALUE with its own options and those of every
    zeroth-order method: mezo, mezo:distribution=rademacher, mezo:restore=exact,eps=1e-4,
    mezo_svrg:period=5.
    """
    from bench.stepping import cases, launch  # why here: they import torch and the models

    several = cases.cases(
        model,
        dtype,
        shape,
        method,
        rounds=rounds,
        textbook_rounds=min(textbook_rounds, rounds),
        threads=count(threads),
        device=device,
        task=task,
        anchor_batches=anchor_batches,
        noise=noise,
        peaks=peaks,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the child as well
    console = Console(stderr=True)
    failed = 0
    with console.status("") as status:

        def told(case: StepCase, words: str) -> None:
            status.update(f"{case.model} {case.dtype} {case.shape}: {words}")

        for case, done in launch.run(out, several, told):
            if isinstance(done, str):
                failed += 1
                console.print(
                    f"[red]failed[/] {case.key}: {done}", highlight=False, soft_wrap=True
                )
            elif as_json:
                print(json.dumps({**done.model_dump(mode="json"), "summary": summary(done)}))
            else:
                show(done, _wide(), out)
    if failed:
        raise typer.Exit(_INCOMPLETE)


def summary(record: StepSpeed) -> list[dict[str, object]]:
    """Return what is derived of each step's samples, as plain values; what is missing is null."""
    return [
        {
            "step": one.token,
            "forwards": one.forwards,
            "ratio": _told(Spread.of(one.ratios())),
            "cpu_ratio": _told(Spread.of(one.ratios("cpu"))),
            "times_faster_than_textbook": _told(Spread.of(record.faster(one))),
            "extra_peak_bytes": record.extra_bytes(one),
            "limit": record.limit(one),
            "limit_of_two_passes": record.limit(one, 2),
        }
        for one in record.steps
    ]


def show(record: StepSpeed, console: Console, out: Path) -> None:
    """Print a case as tables."""
    case = record.case
    load = "-".join(f"{x:.1f}" for x in record.load_average)
    kernel = record.environment.noise_kernel
    console.print(
        f"[bold]{case.model} {case.dtype} {case.shape}[/], {case.device}, {case.threads} threads, "
        f"noise kernel {kernel}, load average {load}",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("step", overflow="fold")
    for heading in _HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for one in record.steps:
        table.add_row(*_row(record, one))
    console.print(table)
    notes = [f"{s.token}: {s.reason}" for s in record.steps if s.reason]
    notes += [
        f"{s.token}: {s.idle_updates} updates had a coefficient of 0: they did less than others"
        for s in record.steps
        if s.idle_updates
    ]
    for note in notes:
        console.print(note, style="yellow", highlight=False)
    if record.passes:
        console.print(_passes(record.passes))
    console.print(f"Record: {out / record.key / STEP_SPEED}\n", highlight=False, soft_wrap=True)


def _row(record: StepSpeed, one: StepTimes) -> list[str]:
    limit, of_two = record.limit(one), record.limit(one, 2)
    extra = record.extra_bytes(one)
    return [
        one.token,
        str(one.forwards),
        _spread(Spread.of(one.ratios())),
        _spread(Spread.of(one.ratios("cpu"))),
        "" if one.token == TEXTBOOK else _spread(Spread.of(record.faster(one)), 2),
        "" if extra is None else f"{extra / _MIB:,.1f}",
        "" if one.peak is None else f"{one.peak.outside_bytes / _MIB:,.1f}",
        "" if limit is None else f"{limit:.3f}",
        "" if of_two is None else f"{of_two:.3f}",
    ]


def _wide() -> Console:
    """Return a console that breaks no table where its output goes to a file."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def _passes(several: list[PassSpeed]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("one pass in place")
    for heading in ("ns/element", "GB/s read + written"):
        table.add_column(heading, justify="right")
    for one in several:
        table.add_row(
            one.name, f"{one.nanoseconds_per_element:.3f}", f"{one.bytes_per_second / 1e9:.1f}"
        )
    return table


def _spread(spread: Spread | None, digits: int = 3) -> str:
    if spread is None:
        return ""
    low, high = spread.low, spread.high
    return f"{spread.median:.{digits}f} \\[{low:.{digits}f}-{high:.{digits}f}]"


def _told(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else asdict(spread)
