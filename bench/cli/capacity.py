"""``zometer capacity``: which GPUs a grid of models and methods takes, and for how long."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.cli import asked
from bench.cli.fit import short
from bench.predict.calibration import Calibration, read
from bench.predict.fits import gib
from bench.predict.gpus import Gpu, catalogue, find
from bench.predict.parallel_traces import Traces
from bench.predict.plan import Plan, plan
from bench.predict.predict import predict_all
from bench.predict.prediction import Prediction
from bench.records import RunSpec, UserError

_INCOMPLETE = 4
_NOTE = (
    "Several GPUs: a layer pipeline, or FSDP, its batch that of each GPU; estimated from the "
    "trace on one, or traced (--full). GPU-hours: a roofline's band; steps to an accuracy differ "
    "between methods."
)


def capacity(
    models: Annotated[str, typer.Option(help="Models, separated by commas.")],
    methods: Annotated[str, typer.Option(help="Methods, separated by commas.")],
    devices: Annotated[
        str | None, typer.Option(help="GPUs, separated by commas; all known ones if left out.")
    ] = None,
    dtype: asked.Dtype = "bf16",
    batch: asked.Batch = 1,
    seq: asked.Seq = 400,
    tuning: asked.Tuning = "full",
    steps: Annotated[int, typer.Option(min=1, help="Steps that hours are told for.")] = 1000,
    full: Annotated[bool, typer.Option("--full", help="Trace all layers, and plans.")] = False,
    calibration: asked.OwnConstants = None,
    own_gpus: asked.OwnGpus = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a row.")] = False,
) -> None:
    """Plan: the smallest GPU and how many of it, for each model and method; nothing is run."""
    names = _names(devices) if devices else list(catalogue(own_gpus))
    gpus = [find(name, own_gpus) for name in names]
    constants = read(calibration)
    specs = [
        asked.spec_of(model=model, method=method, dtype=dtype, batch_size=batch, seq_len=seq,
                      tuning=tuning, options={})
        for model, method in product(_names(models), _names(methods))
    ]  # fmt: skip
    table = Table(box=None, pad_edge=False)
    for heading in ("model", "method", "GPUs", "plan", "needs each", "to spare", "step, s"):
        table.add_column(heading, overflow="fold")
    table.add_column(f"GPU-hours, {steps:,} steps", overflow="fold")
    failed = 0
    for spec, found in zip(specs, predict_all(specs, full=full), strict=True):
        best = None
        if isinstance(found, UserError):
            failed += 1
        else:
            found = found.calibrated(constants)
            best = _settled(found, gpus, steps, constants, full)
        if as_json:
            print(json.dumps(_told(spec, found, best)), flush=True)
        else:
            table.add_row(spec.model, spec.method, *_row(found, best))
    if not as_json:
        Console().print(table)
        print(f"\n{_NOTE}")
    if failed:
        raise typer.Exit(_INCOMPLETE)


def _settled(
    found: Prediction, gpus: Sequence[Gpu], steps: int, constants: Calibration, full: bool
) -> tuple[Gpu, Plan] | None:
    """Return the smallest plan; with ``full`` once several GPUs of it are traced."""
    traces = Traces(found, constants, lambda text: print(text, file=sys.stderr, flush=True))

    def choose(known: Mapping[int, Prediction]) -> Plan | None:
        best = smallest(found, gpus, steps, constants, known)
        return best[1] if best else None

    if full:
        traces.settled(choose, gpus)
    return smallest(found, gpus, steps, constants, traces.known)


def smallest(
    found: Prediction,
    gpus: Iterable[Gpu],
    steps: int,
    constants: Calibration | None = None,
    traced: Mapping[int, Prediction] | None = None,
) -> tuple[Gpu, Plan] | None:
    """Return the plan with the least memory in all; one that fits comes before a tight one."""
    tried = [
        (gpu, plan(found, gpu, steps=steps, constants=constants, traced=traced)) for gpu in gpus
    ]
    plans = [(gpu, made) for gpu, made in tried if made]
    if not plans:
        return None
    return min(
        plans,
        key=lambda one: (
            one[1].fit.answer == "tight",
            one[1].fit.count * one[0].usable,
            one[0].name,
        ),
    )


def _row(found: Prediction | UserError, best: tuple[Gpu, Plan] | None) -> list[str]:
    if isinstance(found, UserError):
        return ["", str(found), "", "", "", ""]
    if best is None:
        return ["", "more than 16 of any", gib(found.needs[0].process.expected), "", "", ""]
    gpu, made = best
    layout = made.layout if made.quality == "traced" else f"{made.layout}, {made.quality}"
    tight = ", tight" if made.fit.answer == "tight" else ""
    step, hours = made.cost.step, made.cost.gpu_hours
    return [
        f"{made.fit.count} x {gpu.name}",
        layout + tight,
        gib(made.needs[0].process.expected),
        gib(made.fit.spare),
        f"{short(step.low)} to {short(step.high)}",
        f"{short(hours.low)} to {short(hours.high)}",
    ]


def _told(
    spec: RunSpec, found: Prediction | UserError, best: tuple[Gpu, Plan] | None
) -> dict[str, Any]:
    told: dict[str, Any] = {"model": spec.model, "method": spec.method}
    if isinstance(found, UserError):
        return {**told, "reason": str(found)}
    return {**told, "whole": found.whole, "plan": best[1].as_dict() if best else None}


def _names(text: str) -> list[str]:
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise UserError(f"Expected names separated by commas, got '{text}'.")
    return list(dict.fromkeys(found))
