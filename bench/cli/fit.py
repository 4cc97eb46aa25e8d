"""``zometer fit``: does a method on a model fit a GPU? In words first."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from bench.predict import fits
from bench.predict.calibration import Calibration, read
from bench.predict.figures import Figures
from bench.predict.fits import gib
from bench.predict.gpus import Gpu, catalogue, find
from bench.predict.plan import plan
from bench.predict.predict import predict
from bench.predict.prediction import Prediction
from bench.predict.roofline import Cost
from bench.records import RunSpec, UserError, unknown

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
_STEPS = 1000


def fit(
    model: Annotated[str, typer.Option(help="A built-in model, a directory, or a hub name.")],
    method: Annotated[str, typer.Option(help="A method: zometer list methods")],
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16; or fp32 ...")] = "fp16",
    batch: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 1,
    seq: Annotated[int, typer.Option(min=1, help="Tokens of the longest example.")] = 400,
    tuning: Annotated[str, typer.Option(help="What is trained: zometer list tunings")] = "full",
    device: Annotated[
        str | None, typer.Option(help="A GPU, such as a100-80gb; all known ones if left out.")
    ] = None,
    option: Annotated[
        list[str], typer.Option(metavar="K=V", help="A setting of the method, again for each.")
    ] = [],  # noqa: B006  # why: typer reads it, nobody changes it
    autocast: Annotated[bool, typer.Option("--autocast", help="Mixed precision.")] = False,
    checkpointing: Annotated[
        bool, typer.Option("--checkpointing", help="Activation checkpointing.")
    ] = False,
    calibration: Annotated[
        Path | None, typer.Option(help="Constants: zometer calibrate-model writes them.")
    ] = None,
    own_gpus: Annotated[
        Path | None, typer.Option("--gpus", help="GPUs beside the known ones, in TOML.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Say whether a method on a model fits a GPU, and what takes the memory; nothing is run."""
    gpus = [find(device, own_gpus)] if device else list(catalogue(own_gpus).values())
    constants = read(calibration)
    spec = spec_of(
        model=model, method=method, dtype=dtype, batch_size=batch, seq_len=seq, tuning=tuning,
        options=options_of(option), autocast="bfloat16" if autocast else None,
        checkpointing=checkpointing,
    )  # fmt: skip
    found = predict(spec, full=True).calibrated(constants)
    answers = [fits.fit(found.on(gpu), gpu) for gpu in gpus]
    words = _words(found, gpus, constants)
    if as_json:
        told = {"words": words, "fits": [a.as_dict() for a in answers], **found.as_dict()}
        print(json.dumps(told, indent=1))
        return
    print(f"{title(spec)} {words}.")
    console = Console()
    needs = found.on(gpus[0]) if device else found.needs
    for table in (_figures(needs[0]), _phases(needs[0]), _gpus(found, gpus, constants)):
        console.print()
        console.print(table)
    print(_sources(found, constants))


def spec_of(**fields: Any) -> RunSpec:
    """Return the run that is asked about, on random tokens of full length.

    Raises:
        UserError: a name is unknown, or a value out of range.

    """
    from bench import tuning  # why here: it imports torch
    from bench.models.resolve import resolve
    from zo_core import methods

    fields["dtype"] = _DTYPES.get(fields["dtype"], fields["dtype"])
    if fields["dtype"] not in _DTYPES.values():
        raise unknown("dtype", fields["dtype"], [*_DTYPES.values(), *_DTYPES])
    if fields["method"] not in methods.titles():
        raise unknown("method", fields["method"], methods.titles())
    if fields["tuning"] not in tuning.names():
        raise unknown("tuning", fields["tuning"], tuning.names())
    resolve(fields["model"])
    try:
        methods.build(fields["method"], **fields["options"])
        return RunSpec(task="random_tokens", steps=2, lr=1e-6, device="cuda", **fields)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UserError(f"'{name}': {first['msg']}, got {first['input']!r}.") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"Method '{fields['method']}': {error}") from None


def options_of(given: Iterable[str]) -> dict[str, bool | int | float | str]:
    """Return settings from the command line: numbers and true/false as such, else text.

    >>> options_of(["eps=1e-3", "storage=dense", "scale_lr=true"])
    {'eps': 0.001, 'storage': 'dense', 'scale_lr': True}

    """
    found: dict[str, bool | int | float | str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise UserError(f"Expected --option name=value, got '{text}'.")
        found[name] = _value(value)
    return found


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def title(spec: RunSpec) -> str:
    """Return a run in words."""
    what = "" if spec.tuning == "full" else f" ({spec.tuning})"
    return (
        f"{spec.method}{what} on {spec.model} in {spec.dtype}, batch {spec.batch_size} of "
        f"{spec.seq_len} tokens:"
    )


def _words(found: Prediction, gpus: list[Gpu], constants: Calibration) -> str:
    """Return the answer: for the one GPU asked about, or for the smallest that does."""
    if len(gpus) > 1:
        held = [fits.fit(found.on(gpu), gpu) for gpu in sorted(gpus, key=lambda g: g.usable)]
        for answer in ("yes", "tight"):
            if fitting := [fit for fit in held if fit.answer == answer]:
                return fitting[0].words
        gpu = next(g for g in gpus if g.name == "h100-80gb")
    else:
        (gpu,) = gpus
    single = fits.fit(found.on(gpu), gpu)
    if single.answer != "no":
        return single.words
    several = plan(found, gpu, steps=_STEPS, constants=constants)
    if several is None:
        return f"{single.words}; no plan for up to {max(fits.COUNTS)} holds it"
    words = several.fit.words
    return f"{single.words}; {words} (estimated: {several.layout})"


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


def _gpus(found: Prediction, gpus: list[Gpu], constants: Calibration) -> Table:
    table = Table(
        "GPU",
        "fits",
        "to spare",
        "plan",
        "step",
        "GPU-hours per 1000 steps",
        box=None,
        pad_edge=False,
    )
    for gpu in sorted(gpus, key=lambda gpu: (gpu.usable, gpu.name)):
        single = fits.fit(found.on(gpu), gpu)
        several = plan(found, gpu, steps=_STEPS, constants=constants)
        named = "more than 16" if several is None else _plan(several.fit.count, several.layout)
        spent = several.cost if several else found.cost(gpu, steps=_STEPS)
        table.add_row(gpu.name, single.answer, gib(single.spare), named, *_time(spent))
    return table


def short(number: float) -> str:
    """Return a rough number in two digits, or as a whole one.

    >>> short(0.0852), short(4.61), short(113.4)
    ('0.085', '4.6', '113')

    """
    return f"{number:,.0f}" if number >= 10 else f"{number:.2g}"


def _plan(count: int, layout: str) -> str:
    return "1" if count == 1 else f"{count}, {layout}, estimated"


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
    return (
        f"\nTraced on fake tensors ({found.layers} layers, {versions}). Allocator "
        f"simulated; context from {context}; times from a roofline, right to a factor of two."
    )
