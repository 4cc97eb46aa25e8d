"""How an update lands in the weights: rounding, and decoupled weight decay.

In 16 bits most updates of zeroth-order fine-tuning are smaller than half a unit in the last
place, and vanish when rounded to nearest. Stochastic rounding goes up or down with the probability
that makes the mean right (Gupta et al., "Deep learning with limited numerical precision", ICML
2015), by random bits of the step's own seed: a replay rounds as the live run did.

Where theta is still at the last point that was looked at, the way back is written along with the
update: round(theta' + back + change), one pass and one rounding for both. An update that is too
small to move a weight of 16 bits then moves some of them, as theta' + back is between two numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from zo_core import noise
from zo_core.base import Away, Distribution, Param, Params, Piece, Term, derive_seed, merge

Rounding = Literal["nearest", "stochastic"]
DecayGroup = Literal["matrices", "all"]

Observer = Callable[[Piece, Tensor, Tensor], None]
"""Told of each piece, when it is written, the old values and the change asked for; (n,) each.

The old values of a theta that is taken back by the same write are those that taking it back
alone would have left, and the change is the update alone.
"""

_OBSERVER: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def observed(by: Observer) -> Iterator[None]:
    """Let ``by`` see every write made meanwhile. Same bits; slower, as it goes by pieces."""
    token = _OBSERVER.set(by)
    try:
        yield
    finally:
        _OBSERVER.reset(token)


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
    away: Away | None = None
    """Where theta stands, if it is to be taken back as well: with rounding to nearest and without
    decay, by one call of ``terms_`` along its distribution, or by every piece once."""

    def terms_(self, params: Params, distribution: Distribution, terms: Sequence[Term]) -> None:
        """Add ``sum_k c_k u(seed_k)``; in the kernel's one pass where nothing else is asked."""
        away = self.away
        assert away is None or away.distribution is distribution, "a rule promises it by in_terms"
        whole = merge((*away.back, *terms)) if away else terms
        if self.decay == 0.0 and _OBSERVER.get() is None:
            if self.rounding == "nearest":
                distribution.add_(params, whole)
                return
            if distribution.law is not None:
                noise.add_(params, distribution.law, whole, rounding=self._rounding_seed)
                return
        for piece in noise.pieces(params):
            update = distribution.draw(piece, terms) if away else None
            self._put_(piece, distribution.draw(piece, whole), update)

    @property
    def _rounding_seed(self) -> int:
        return derive_seed(self.seed, "rounding")

    def piece_(self, piece: Piece, change: Tensor) -> None:
        """Add ``change``, shape (n,), to one piece, and decay it; ``change`` is overwritten.

        Decay is decoupled (Loshchilov and Hutter, arXiv 1711.05101): of the old weights, whatever
        the update rule.
        """
        update = None
        if self.away:
            update = change.clone()
            change.add_(self.away.distribution.draw(piece, self.away.back))
        self._put_(piece, change, update)

    def _put_(self, piece: Piece, change: Tensor, update: Tensor | None) -> None:
        """Add ``change``: the way back and ``update``; where that is None it is all update."""
        observer = _OBSERVER.get()
        old = piece.part.to(piece.wide, copy=observer is not None)
        if self.decay and (self.group == "all" or decays(piece.param)):
            change.sub_(old, alpha=self.decay)
        asked = change.clone() if observer and update is None else update
        new = change.add_(old)
        if self.rounding == "stochastic" and piece.part.itemsize == 2:
            # An entry that is not moved is not rounded either: it is a value of the dtype.
            piece.part.copy_(noise.rounded(piece, new, self._rounding_seed))
        else:
            piece.part.copy_(new)
        if observer and asked is not None:
            observer(piece, self._home(piece, old), asked)

    def _home(self, piece: Piece, old: Tensor) -> Tensor:
        """Return what taking theta back alone would have made of ``old``, shape (n,)."""
        if self.away is None:
            return old
        home = self.away.distribution.draw(piece, self.away.back).add_(old)
        return home.to(piece.part.dtype).to(piece.wide)


def decays(param: Param) -> bool:
    """Whether a tensor is a weight matrix: biases and norms have one dimension, whatever names."""
    return param.tensor.dim() >= 2
