"""``zometer bench monitor``: what measuring a step costs, as a ratio."""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.records.monitor_cost import MONITOR_COST, MonitorCase, MonitorCost, WatchCost
from bench.records.step_speed import Spread
from bench.threads import count

_WIDTH = 124
_WORDS = {
    "nothing": "nothing (control)",
    "time": "time run: phases, events, sampler",
    "memory": "memory run: peaks at every border",
}


def monitor(
    model: Annotated[str, typer.Option(help="A model.")] = "opt-125m",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    shape: Annotated[str, typer.Option(help="BATCHxTOKENS.")] = "8x64",
    method: Annotated[str, typer.Option(help="A method with its options.")] = "mezo",
    rounds: Annotated[int, typer.Option(min=1, help="Samples of each way of watching.")] = 9,
    steps: Annotated[int, typer.Option(min=1, help="Steps of a sample.")] = 2,
    interval: Annotated[
        float, typer.Option(min=0.001, help="Seconds between readings of the sampler.")
    ] = 0.05,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads; as many as a run takes if left out.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    out: Annotated[Path, typer.Option(help="Where the record goes, in a folder.")] = Path(
        "results/monitor"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON line.")] = False,
) -> None:
    """Time a step watched and not, in turns in one process.

    Watched as in a time run (phases, events written down, the sampler's process beside it), and as
    in a memory run (the device stopped, the heap trimmed and peaks read at every border of a
    phase, which is why those never report times). The control is a step that nothing watches: its
    ratio should be 1, and its spread is what the machine adds to the others. docs/measuring.md.
    """
    from bench.overhead import launch  # why here: it imports torch and the models
    from bench.stepping import cases

    (one,) = cases.cases(
        [model],
        [dtype],
        [shape],
        [method],
        rounds=rounds,
        textbook_rounds=0,
        threads=count(threads),
        device=device,
        noise=False,
        peaks=False,
    )
    case = MonitorCase(step=one, steps=steps, interval_seconds=interval)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the child as well
    console = Console(stderr=True)
    with console.status("") as status:
        record = launch.run(out, case, lambda words: status.update(f"{model} {shape}: {words}"))
    if as_json:
        print(json.dumps({**record.model_dump(mode="json"), "summary": summary(record)}))
    else:
        show(record, out)


def summary(record: MonitorCost) -> dict[str, object]:
    """Return what is derived of the samples, as plain values; what is missing is null."""
    watched = {}
    for one in record.watched:
        wall, cpu = Spread.of(one.ratios()), Spread.of(one.ratios("cpu"))
        watched[one.watch] = {
            "ratio": asdict(wall) if wall else None,
            "cpu_ratio": asdict(cpu) if cpu else None,
        }
    return {
        "watched": watched,
        "step_seconds": record.step_seconds(),
        "time_share": record.time_share(),
        "sampler_cpu_share": record.sampler_cpu_share,
    }


def show(record: MonitorCost, out: Path) -> None:
    """Print a row a way of watching."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    step = record.case.step
    load = "-".join(f"{x:.1f}" for x in record.load_average)
    console.print(
        f"[bold]{step.model} {step.dtype} {step.shape}[/], {step.methods[0]}, {step.device}, "
        f"{step.threads} threads, {record.step_seconds():.3f} s a step, load average {load}",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("watched by")
    for heading in ("ratio", "CPU ratio", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in record.watched:
        table.add_row(_WORDS[one.watch], *_row(one))
    console.print(table)
    console.print(
        f"A time run opens {record.phases_per_step} phases a step, of "
        f"{1e6 * record.phase_cost_seconds:.0f} us each: {100 * record.time_share():.3f} % of it.",
        highlight=False,
    )
    if record.sampler_cpu_share is not None:
        share = 100 * record.sampler_cpu_share
        ms = 1e3 * record.case.interval_seconds
        console.print(
            f"The sampler, every {ms:g} ms, takes {share:.2f} % of one core.", highlight=False
        )
    meters = ", ".join(record.trackers) or "none"
    console.print(f"Read at the borders of the memory run: {meters}.", highlight=False)
    path = out / record.key / MONITOR_COST
    console.print(f"Record: {path}", highlight=False, soft_wrap=True)


def _row(one: WatchCost) -> tuple[str, str, str]:
    return _spread(one.ratios()), _spread(one.ratios("cpu")), str(len(one.samples))


def _spread(values: list[float]) -> str:
    spread = Spread.of(values)
    if spread is None:
        return ""
    quartiles = f"{spread.first_quartile:.4f}-{spread.third_quartile:.4f}"
    return f"{spread.median:.4f} \\[{quartiles}]"
