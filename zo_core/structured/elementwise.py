"""A distribution scaled entry by entry: u / sqrt(h), with h > 0 one number a weight.

If E[u u^T] = I then the covariance is diag(1 / h). With h the diagonal of a Hessian, steps are as
long as the curvature of each weight allows (HiZOO, arXiv 2402.15173).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from zo_core import noise
from zo_core.base import Distribution, Param, Piece, Term
from zo_core.structured import by_pieces


@dataclass(frozen=True)
class Elementwise(Distribution):
    """``u / sqrt(h)`` for u of ``base``.

    ``h`` belongs to an estimator's state and is looked at when it is drawn from: a direction of
    one seed changes when ``h`` does.
    """

    base: Distribution
    h: Mapping[int, Tensor] = field(repr=False, compare=False)  # by tensor key: (numel,), positive

    @property
    def name(self) -> str:
        """Name, as in records."""
        return f"{self.base.name}/sqrt(h)"

    def draw(self, piece: Piece, terms: Sequence[Term]) -> Tensor:
        """Return ``sum_k c_k u(seed_k) / sqrt(h)`` for one piece; scratch is one more piece."""
        h = self.h[piece.param.key][piece.first : piece.first + piece.part.numel()]
        return self.base.draw(piece, terms).div_(h.sqrt())

    def add_(self, params: Sequence[Param], terms: Sequence[Term]) -> None:
        """Add ``sum_k c_k u(seed_k) / sqrt(h)`` to ``params`` in one pass, a piece at a time."""
        noise.add_by_pieces_(params, self, terms)

    def write(self, piece: Piece, outs: Sequence[Tensor], terms: Sequence[Term]) -> None:
        """Write ``piece`` plus (and minus) ``sum_k c_k u(seed_k) / sqrt(h)``, with one draw."""
        by_pieces.write(self, piece, outs, terms)
