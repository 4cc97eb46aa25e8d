"""Passes over a tensor larger than the caches: noise, a copy, a multiplication in place."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from bench.records.step_speed import COPY, IN_PLACE, PassSpeed
from bench.stepping.clock import Took, timed
from zo_core import Params, Term, directions

TENSOR_BYTES = 128 * 2**20
"""As large at least as the embedding of OPT-125M; the last level of caches is smaller."""
_ROUNDS = 9
_COEFFICIENT = 1e-6  # of noise: any but 0, which would be skipped


def measure(
    names: Iterable[str], dtype: str, device: str, tensor_bytes: int = TENSOR_BYTES
) -> list[PassSpeed]:
    """Time one pass of each distribution in ``names``, of a copy and of ``mul_(1.0)``, in turns.

    The first round is not kept. A copy and a pass in place read and write as many bytes each.
    """
    kind: torch.dtype = getattr(torch, dtype)
    tensor = torch.zeros(tensor_bytes // kind.itemsize, dtype=kind, device=device)
    works = {name: _noise(name, tensor) for name in names}
    other = torch.zeros_like(tensor)
    works[COPY] = lambda: other.copy_(tensor)
    # As float32, whatever the dtype: converting 16 bits takes longer than moving them.
    bits = tensor.view(torch.float32)
    works[IN_PLACE] = lambda: bits.mul_(1.0)
    took: dict[str, list[Took]] = {name: [] for name in works}
    for turn in range(_ROUNDS + 1):
        for name in list(works)[:: -1 if turn % 2 else 1]:
            one = timed(works[name], device)
            if turn:
                took[name].append(one)
    return [
        PassSpeed(
            name=name,
            elements=tensor.numel(),
            moved_bytes=2 * tensor.numel() * tensor.element_size(),
            seconds=[one.seconds for one in several],
            cpu_seconds=[one.cpu_seconds for one in several],
        )
        for name, several in took.items()
    ]


def _noise(name: str, tensor: Tensor) -> Callable[[], object]:
    params = Params([("noise", tensor)])
    along = directions.build(name)
    return lambda: along.add_(params, [Term(1, _COEFFICIENT)])
