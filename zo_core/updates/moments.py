"""Dense moving averages: one number an entry, in float32 whatever the weights.

In 16 bits an average stands still (a step of ``1 - beta2 = 0.001`` is below bfloat16's precision)
and Adam's 1e-8 is below float16's smallest number, so the dtype is that of sums, not of weights.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from zo_core.base import Param, Piece

Moments = dict[int, Tensor]
"""By the tensor's key: shape (numel,), float32 (float64 for float64 weights)."""


def zeros(params: Iterable[Param]) -> Moments:
    """Return averages of nothing yet."""
    return {
        p.key: torch.zeros(p.tensor.numel(), dtype=_dtype(p), device=p.tensor.device)
        for p in params
    }


def stretch(moments: Moments, piece: Piece) -> Tensor:
    """Return the view of ``moments`` that belongs to ``piece``, shape (n,)."""
    return moments[piece.param.key][piece.first : piece.first + piece.part.numel()]


def moments_bytes(params: Iterable[Param]) -> int:
    """Count the bytes of one set."""
    return sum(p.tensor.numel() * _dtype(p).itemsize for p in params)


def _dtype(param: Param) -> torch.dtype:
    return torch.float64 if param.tensor.dtype == torch.float64 else torch.float32
