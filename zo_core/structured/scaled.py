"""Directions stretched tensor by tensor: D u, with D constant on a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from zo_core.base import Distribution, Param, Piece, Term, scaled


@dataclass(frozen=True)
class Scaled(Distribution):
    """The base's direction times a factor of the tensor: no pass and no scratch of its own."""

    base: Distribution
    factors: Mapping[int, float]
    """Key of a tensor -> factor; every tensor has one."""

    @property
    def name(self) -> str:
        """Name, as in records."""
        return f"{self.base.name}, scaled by tensor"

    def draw(self, piece: Piece, terms: Sequence[Term]) -> Tensor:
        """Return ``sum_k c_k D u(seed_k)`` for one piece."""
        return self.base.draw(piece, scaled(terms, self.factors[piece.param.key]))

    def add_(self, params: Sequence[Param], terms: Sequence[Term]) -> None:
        """Add ``sum_k c_k D u(seed_k)`` to ``params`` in one pass."""
        for param in params:
            self.base.add_((param,), scaled(terms, self.factors[param.key]))

    def write(self, piece: Piece, outs: Sequence[Tensor], terms: Sequence[Term]) -> None:
        """Write ``piece`` plus (and minus) ``sum_k c_k D u(seed_k)`` elsewhere."""
        self.base.write(piece, outs, scaled(terms, self.factors[piece.param.key]))

    def write_rows(
        self, param: Param, rows: Tensor, outs: Sequence[Tensor], terms: Sequence[Term]
    ) -> None:
        """Write rows of a matrix plus (and minus) ``sum_k c_k D u(seed_k)`` elsewhere."""
        self.base.write_rows(param, rows, outs, scaled(terms, self.factors[param.key]))
