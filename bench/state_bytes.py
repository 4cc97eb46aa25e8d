"""How much a method really keeps between steps: the storages that its state holds, counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from bench.records import METRICS, Measurement
from zo_core import Params


def measure(state: Any, params: Params) -> Measurement:
    """Return the bytes of all tensors in ``state``, each storage once, those of theta not."""
    own = {p.tensor.untyped_storage()._cdata for p in params}
    storages = {s._cdata: s.nbytes() for s in (t.untyped_storage() for t in _tensors(state))}
    value = sum(size for key, size in storages.items() if key not in own)
    return Measurement(
        metric="method_state_bytes",
        phase="train",
        value=value,
        unit=METRICS["method_state_bytes"].unit,
        quality="exact",
        source="storages of the state",
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
