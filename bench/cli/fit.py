"""``zometer fit``: does a method on a model fit a GPU? In words first."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from bench.cli import asked
from bench.predict import fits
from bench.predict.calibration import Calibration, read
from bench.predict.figures import Figures
from bench.predict.fits import Fit, gib
from bench.predict.gpus import Gpu, catalogue, find
from bench.predict.parallel import parallel_for
from bench.predict.parallel_traces import Traces
from bench.predict.plan import Plan, over, plan
from bench.predict.predict import predict
from bench.predict.prediction import Prediction, dtype_of
from bench.predict.roofline import Cost

_STEPS = 1000
_COLUMNS = ("GPU", "fits", "to spare", "plan", "step", "GPU-hours per 1000 steps")


def fit(
    model: asked.Model,
    method: asked.Method,
    dtype: asked.Dtype = "fp16",
    batch: asked.Batch = 1,
    seq: asked.Seq = 400,
    tuning: asked.Tuning = "full",
    device: Annotated[
        str | None, typer.Option(help="A GPU, such as a100-80gb; all known ones if left out.")
    ] = None,
    num_gpus: Annotated[
        int | None, typer.Option(min=1, help="Trace exactly so many; as few as fit if left out.")
    ] = None,
    option: asked.Option = [],  # noqa: B006  # why: typer reads it, nobody changes it
    autocast: asked.Autocast = False,
    checkpointing: asked.Checkpointing = False,
    calibration: asked.OwnConstants = None,
    own_gpus: asked.OwnGpus = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Say whether a method on a model fits a GPU, and what takes the memory; nothing is run."""
    gpus = [find(device, own_gpus)] if device else list(catalogue(own_gpus).values())
    constants = read(calibration)
    spec = asked.spec_of(
        model=model, method=method, dtype=dtype, batch_size=batch, seq_len=seq, tuning=tuning,
        options=asked.options_of(option), autocast="bfloat16" if autocast else None,
        checkpointing=checkpointing,
    )  # fmt: skip
    parallel = parallel_for(spec, num_gpus or 1)
    found = predict(spec, full=True, parallel=parallel).calibrated(constants)
    answers = [fits.fit(found.on(gpu), gpu) for gpu in gpus]
    traces = Traces(found, constants, lambda text: print(text, file=sys.stderr, flush=True))
    if num_gpus is None:
        words = _words(found, gpus, traces)
        table = _gpus(found, gpus, traces)
    else:
        words = f"{_best(answers, gpus).words} (traced: {found.layout})"
        table = _over_so_many(found, gpus)
    if as_json:
        several = [one.as_dict() for _, one in sorted(traces.known.items())]
        told = {"words": words, "fits": [a.as_dict() for a in answers], **found.as_dict()}
        print(json.dumps({**told, "several": several}, indent=1))
        return
    print(f"{asked.title(spec)} {words}.")
    console = Console()
    needs = found.on(gpus[0]) if device else found.needs
    fullest = max(needs, key=lambda each: each.process.high)
    shown = [_figures(fullest), _phases(fullest), table]
    if len(needs) > 1 and found.parallel and found.parallel.layout == "pipeline":
        shown.insert(0, _devices(needs))
    for each in shown:
        console.print()
        console.print(each)
    print(_sources(found, constants))


def _best(answers: list[Fit], gpus: list[Gpu]) -> Fit:
    """Return the answer for the smallest GPU that does, or for the largest if none does."""
    by_size = [
        fit for _, fit in sorted(zip(gpus, answers, strict=True), key=lambda p: p[0].usable)
    ]
    held = [f for answer in ("yes", "tight") for f in by_size if f.answer == answer]
    return held[0] if held else by_size[-1]


def _words(found: Prediction, gpus: list[Gpu], traces: Traces) -> str:
    """Return the answer: for the one GPU asked about, or for the smallest that does."""
    if len(gpus) > 1:
        best = _best([fits.fit(found.on(gpu), gpu) for gpu in gpus], gpus)
        if best.answer != "no":
            return best.words
        gpu = next(g for g in gpus if g.name == "h100-80gb")
    else:
        (gpu,) = gpus
    single = fits.fit(found.on(gpu), gpu)
    if single.answer != "no":
        return single.words

    def choose(known: Mapping[int, Prediction]) -> Plan | None:
        return plan(found, gpu, steps=_STEPS, constants=traces.constants, traced=known)

    several = traces.settled(choose, [gpu])
    if several is None:
        return f"{single.words}; no plan for up to {max(fits.COUNTS)} holds it"
    reason = traces.reasons.get(several.fit.count)
    how = f"{several.quality}: {several.layout}" + (f"; not traced: {reason}" if reason else "")
    fewer = [fits.fit(one.on(gpu), gpu) for n, one in sorted(traces.known.items())]
    tight = [f.words for f in fewer if f.answer == "tight" and f.count < several.fit.count]
    return "; ".join([single.words, *tight[:1], f"{several.fit.words} ({how})"])


def _devices(needs: Sequence[Figures]) -> Table:
    table = Table("device", "weights", "allocated", "process", box=None, pad_edge=False)
    for each in needs:
        weights = size(each.components.get("weights", 0))
        table.add_row(str(each.device), weights, size(each.allocated), gib(each.process.expected))
    return table


def _figures(needs: Figures) -> Table:
    low, expected, high = (
        gib(n) for n in (needs.process.low, needs.process.expected, needs.process.high)
    )
    table = Table("figure", "memory", "what it is", box=None, pad_edge=False)
    table.add_row("allocated", size(needs.allocated), "torch's max_memory_allocated")
    table.add_row("reserved", size(needs.reserved), "torch's max_memory_reserved")
    table.add_row("  expandable", size(needs.reserved_expandable), "with expandable segments")
    table.add_row("least", size(needs.least), "the least that torch can work in, cache emptied")
    table.add_row("process", expected, f"as nvidia-smi shows it; from {low} to {high}")
    return table


def _phases(needs: Figures) -> Table:
    parts = list(dict.fromkeys(name for phase in needs.phases for name in phase.components))
    table = Table("phase", "peak", *parts, box=None, pad_edge=False)
    for phase in needs.phases:
        sizes = [size(phase.components.get(name, 0)) for name in parts]
        table.add_row(phase.phase, size(phase.allocated), *sizes)
    return table


def size(nbytes: int) -> str:
    """Return bytes in GiB or MiB, for a table."""
    if nbytes < 1 << 20:
        return "-" if not nbytes else "< 1 MiB"
    return gib(nbytes) if nbytes >= 1 << 30 else f"{nbytes / (1 << 20):.0f} MiB"


def _gpus(found: Prediction, gpus: list[Gpu], traces: Traces) -> Table:
    """Return the fewest GPUs of each kind; several are estimated, but for those traced already."""
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    for gpu in sorted(gpus, key=lambda gpu: (gpu.usable, gpu.name)):
        single = fits.fit(found.on(gpu), gpu)
        several = plan(found, gpu, steps=_STEPS, constants=traces.constants, traced=traces.known)
        named = "more than 16" if several is None else _plan(several)
        spent = several.cost if several else found.cost(gpu, steps=_STEPS)
        table.add_row(gpu.name, single.answer, gib(single.spare), named, *_time(spent))
    return table


def _over_so_many(found: Prediction, gpus: list[Gpu]) -> Table:
    """Return what so many GPUs of each kind are, as they were traced."""
    table = Table(*_COLUMNS, box=None, pad_edge=False)
    count = len(found.needs)
    for gpu in sorted(gpus, key=lambda gpu: (gpu.usable, gpu.name)):
        answer, spent = fits.fit(found.on(gpu), gpu), over(found, gpu, steps=_STEPS)
        named = f"{count}, {found.layout}, traced" if count > 1 else "1"
        table.add_row(gpu.name, answer.answer, gib(answer.spare), named, *_time(spent))
    return table


def short(number: float) -> str:
    """Return a rough number in two digits, or as a whole one.

    >>> short(0.0852), short(4.61), short(113.4)
    ('0.085', '4.6', '113')

    """
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _plan(made: Plan) -> str:
    count = made.fit.count
    return "1" if count == 1 else f"{count}, {made.layout}, {made.quality}"


def _time(spent: Cost) -> tuple[str, str]:
    step, hours = spent.step, spent.gpu_hours
    return (
        f"{short(step.low)} to {short(step.high)} s",
        f"{short(hours.low)} to {short(hours.high)}",
    )


def _sources(found: Prediction, constants: Calibration) -> str:
    versions = ", ".join(
        f"{k.removesuffix(' version')} {v}"
        for k, v in found.facts.items()
        if k.endswith("version")
    )
    measured = constants.verified["context"]
    context = constants.sources["context"] if measured else "public out-of-memory messages"
    timed = [reached.source for (_, dtype), reached in sorted(constants.efficiencies.items())
             if dtype == dtype_of(found.spec)]  # fmt: skip
    measured_by = f"; calibrated by {', '.join(timed)}" if timed else ""
    return (
        f"\nTraced on fake tensors ({found.layers} layers, {versions}). Allocator simulated; "
        f"context from {context}; times from a roofline, right to a factor of two{measured_by}."
    )
