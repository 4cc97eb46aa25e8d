"""How an update lands in the weights: rounding, and decoupled weight decay.

In 16 bits most updates of zeroth-order fine-tuning are smaller than half a unit in the last
place, and vanish when rounded to nearest. Stochastic rounding goes up or down with the probability
that makes the mean right (Gupta et al., "Deep learning with limited numerical precision", ICML
2015), by random bits of the step's own seed: a replay rounds as the live run did.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from zo_core import noise
from zo_core.base import Distribution, Param, Params, Piece, Term, derive_seed

Rounding = Literal["nearest", "stochastic"]
DecayGroup = Literal["matrices", "all"]

Observer = Callable[[Tensor, Tensor, Tensor], None]
"""Told the old values, the change asked for, and what was written, of each piece; (n,) each."""

_OBSERVER: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def observed(by: Observer) -> Iterator[None]:
    """Let ``by`` see every write made meanwhile. Same bits; slower, as it goes by pieces."""
    token = _OBSERVER.set(by)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


_BITS = {torch.bfloat16: torch.int16, torch.float16: torch.int16}


@dataclass(frozen=True)
class Writer:
    """Writes the changes of one step. Scratch: a few pieces."""

    seed: int = 0
    """Of the step; random bits of stochastic rounding are derived from it."""
    rounding: Rounding = "nearest"
    decay: float = 0.0
    """lr * weight_decay: the share of itself that a decayed entry loses."""
    group: DecayGroup = "matrices"
    """What decays: tensors of two dimensions and more, or all (biases and norms as well)."""

    def terms_(self, params: Params, distribution: Distribution, terms: Sequence[Term]) -> None:
        """Add ``sum_k c_k u(seed_k)``; in the kernel's one pass where nothing else is asked."""
        if self.decay == 0.0 and self.rounding == "nearest" and _OBSERVER.get() is None:
            distribution.add_(params, terms)
            return
        for piece in noise.pieces(params):
            self.piece_(piece, distribution.draw(piece, terms))

    def piece_(self, piece: Piece, change: Tensor) -> None:
        """Add ``change``, shape (n,), to one piece, and decay it; ``change`` is overwritten.

        Decay is decoupled (Loshchilov and Hutter, arXiv 1711.05101): of the old weights, whatever
        the update rule.
        """
        observer = _OBSERVER.get()
        old = piece.part.to(piece.wide, copy=observer is not None)
        if self.decay and (self.group == "all" or decays(piece.param)):
            change.sub_(old, alpha=self.decay)
        wanted = change.clone() if observer else change
        new = change.add_(old)
        if self.rounding == "stochastic" and piece.part.dtype in _BITS:
            # An entry that is not moved is not rounded either: it is a value of the dtype.
            seed = derive_seed(self.seed, "rounding")
            piece.part.copy_(round_stochastically(new, piece, seed))
        else:
            piece.part.copy_(new)
        if observer:
            observer(old, wanted, piece.part)


def decays(param: Param) -> bool:
    """Whether a tensor is a weight matrix: biases and norms have one dimension, whatever names."""
    return param.tensor.dim() >= 2


def round_stochastically(values: Tensor, piece: Piece, seed: int) -> Tensor:
    """Round float32 ``values``, shape (n,), to the dtype of ``piece``; the mean is ``values``.

    A value between two neighbours goes to the upper one (in magnitude) with probability equal to
    how far it stands above the lower. Values of the dtype stay; overflow stays at the largest.
    """
    dtype = piece.part.dtype
    size = values.abs()
    near = size.to(dtype)
    bits = near.view(_BITS[dtype])
    low_bits = bits - (near.to(values.dtype) > size).to(bits.dtype)
    low = low_bits.view(dtype).to(values.dtype)
    high = (low_bits + 1).view(dtype)
    chance = noise.uniform(piece, seed)
    up = (size - low) > chance * (high.to(values.dtype) - low)
    return torch.where(up, high, low_bits.view(dtype)).copysign(values.to(dtype))
