"""What to measure, from the words of the command line; refused before any process is started."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, get_args

from bench import environment, tasks
from bench.models.resolve import resolve
from bench.records import RunSpec, UserError, unknown
from bench.records.spec import Dtype, Option
from bench.records.step_speed import TEXTBOOK, StepCase
from zo_core import Method, methods

_SHAPE = re.compile(r"([1-9]\d*)x([1-9]\d*)")


def cases(
    models: Sequence[str],
    dtypes: Sequence[str],
    shapes: Sequence[str],
    tokens: Sequence[str],
    **settings: Any,
) -> list[StepCase]:
    """Return a case for each model, dtype and shape; ``settings`` are fields of ``StepCase``.

    Raises:
        UserError: something is unknown or malformed; the message names the nearest there is.

    """
    for name in models:
        resolve(name)
    for dtype in dtypes:
        if dtype not in get_args(Dtype):
            raise unknown("dtype", dtype, get_args(Dtype))
    for token in tokens:
        method(token)
    task = settings.get("task", "random_tokens")
    if task not in tasks.names():
        raise unknown("task", task, tasks.names())
    device = settings.get("device", "cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise UserError(f"Expected --device cpu, cuda or cuda:N, got '{device}'.")
    environment.check_device(device)
    several = dict.fromkeys(product(_once(models), _once(dtypes), map(_shape, _once(shapes))))
    return [
        StepCase.model_validate(
            {
                **settings,
                "model": model,
                "dtype": dtype,
                "batch_size": batch,
                "seq_len": length,
                "methods": _once(tokens),
            }
        )
        for model, dtype, (batch, length) in several
    ]


def parse(token: str) -> tuple[str, dict[str, Option]]:
    """Return name and options of ``name[:option=value,...]``.

    >>> parse("mezo:distribution=rademacher,eps=1e-4")
    ('mezo', {'distribution': 'rademacher', 'eps': 0.0001})

    Raises:
        UserError: an option has no value.

    """
    name, _, rest = token.partition(":")
    options: dict[str, Option] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not (key and equals and value):
            raise UserError(
                f"Expected --method name:option=value,option=value, got '{token}': "
                f"'{part}' has no value."
            )
        options[key] = _value(value)
    return name, options


def method(token: str) -> Method:
    """Return the method of a token.

    Raises:
        UserError: no such method, or no such option.

    """
    name, options = parse(token)
    if name == TEXTBOOK:
        raise UserError(
            "'textbook' is no method: the textbook step is taken beside all of them. See "
            "--textbook-rounds."
        )
    try:
        return methods.build(name, **options)
    except ValueError as error:
        raise UserError(str(error)) from error


def spec(case: StepCase) -> RunSpec:
    """Return the run that builds model, task and objective of a case."""
    name, options = parse(case.methods[0])
    return RunSpec(
        method=name,
        options=options,
        lr=case.lr,
        model=case.model,
        task=case.task,
        dtype=case.dtype,
        device=case.device,
        batch_size=case.batch_size,
        seq_len=case.seq_len,
        train_examples=case.batch_size * case.anchor_batches,
        threads=case.threads,
        seed=case.seed,
        steps=1,
    )


def _value(text: str) -> Option:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


def _shape(text: str) -> tuple[int, int]:
    found = _SHAPE.fullmatch(text)
    if not found:
        raise UserError(f"Expected --shape BATCHxTOKENS such as 8x64, got '{text}'.")
    return int(found[1]), int(found[2])


def _once(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))
