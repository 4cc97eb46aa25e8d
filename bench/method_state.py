"""What a method really keeps between steps, and trains: counted, beside what it declares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from bench.records import METRICS, Measurement
from zo_core import Method, Params
from zo_core.zeroth_order import ZerothOrder


def measure(method: Method, params: Params, state: Any) -> list[Measurement]:
    """Return the bytes that ``state`` holds, and how many entries move where not all do."""
    found = [_measurement("method_state_bytes", _bytes(state, params), "storages of the state")]
    if isinstance(method, ZerothOrder):
        trained = method.trained_entries(params, state)
        if trained < params.elements:
            found.append(_measurement("trained_entries", trained, "the method's mask"))
    return found


def _bytes(state: Any, params: Params) -> int:
    """Count all tensors in ``state``, each storage once, those of theta not."""
    own = {p.tensor.untyped_storage()._cdata for p in params}
    storages = {s._cdata: s.nbytes() for s in (t.untyped_storage() for t in _tensors(state))}
    return sum(size for key, size in storages.items() if key not in own)


def _measurement(metric: str, value: int, source: str) -> Measurement:
    unit = METRICS[metric].unit
    return Measurement(
        metric=metric, phase="train", value=value, unit=unit, quality="exact", source=source
    )


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, torch.optim.Optimizer):
        for one in state.state.values():
            yield from _tensors(one)
    elif isinstance(state, dict):
        for one in state.values():
            yield from _tensors(one)
    elif isinstance(state, tuple | list):
        for one in state:
            yield from _tensors(one)
    elif is_dataclass(state):
        for field in fields(state):
            yield from _tensors(getattr(state, field.name))
