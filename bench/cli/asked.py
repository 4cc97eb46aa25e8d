"""The run that is asked about: options that fit, capacity and snapshot share, and their spec."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from bench.records import RunSpec, UserError, unknown

Model = Annotated[str, typer.Option(help="A built-in model, a directory, or a hub name.")]
Method = Annotated[str, typer.Option(help="A method: zometer list methods")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16; or fp32 ...")]
Batch = Annotated[int, typer.Option(min=1, help="Examples a step.")]
Seq = Annotated[int, typer.Option(min=1, help="Tokens of the longest example.")]
Tuning = Annotated[str, typer.Option(help="What is trained: zometer list tunings")]
Option = Annotated[
    list[str], typer.Option(metavar="K=V", help="A setting of the method, again for each.")
]
Autocast = Annotated[bool, typer.Option("--autocast", help="Mixed precision.")]
Checkpointing = Annotated[bool, typer.Option("--checkpointing", help="Activation checkpointing.")]
OwnConstants = Annotated[
    Path | None, typer.Option(help="Constants: zometer calibrate-model writes them.")
]
OwnGpus = Annotated[
    Path | None, typer.Option("--gpus", help="GPUs beside the known ones, in TOML.")
]

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


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
