"""Directions that live on some tensors only: u(seed) is the base's there, and zero elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zo_core.base import Distribution, Param, Piece, Term


@dataclass(frozen=True)
class OnBlocks(Distribution):
    """Each seed has its own cover; what no term covers is not visited, and costs nothing."""

    base: Distribution
    cover: Mapping[int, frozenset[int]]
    """Seed -> keys of the tensors that its direction lives on."""

    @property
    def name(self) -> str:
        """Name, as in records."""
        return f"{self.base.name}, on blocks"

    def draw(self, piece: Piece, terms: Sequence[Term]) -> Tensor:
        """Return ``sum_k c_k u(seed_k)`` for one piece; -0.0 where no term covers it.

        That is the zero of addition: 0.0 would turn a weight of -0.0 into 0.0.
        """
        covering = self._covering(piece.param, terms)
        if not covering:
            return torch.full_like(piece.part, -0.0, dtype=piece.wide)
        return self.base.draw(piece, covering)

    def add_(self, params: Sequence[Param], terms: Sequence[Term]) -> None:
        """Add ``sum_k c_k u(seed_k)`` to those of ``params`` that some term covers."""
        for param in params:
            covering = self._covering(param, terms)
            if covering:
                self.base.add_((param,), covering)

    def write(self, piece: Piece, outs: Sequence[Tensor], terms: Sequence[Term]) -> None:
        """Write ``piece`` plus (and minus) ``sum_k c_k u(seed_k)`` elsewhere."""
        covering = self._covering(piece.param, terms)
        if covering:
            self.base.write(piece, outs, covering)
        else:
            for out in outs:
                out.copy_(piece.part)

    def write_rows(
        self, param: Param, rows: Tensor, outs: Sequence[Tensor], terms: Sequence[Term]
    ) -> None:
        """Write rows of a matrix plus (and minus) ``sum_k c_k u(seed_k)`` elsewhere."""
        covering = self._covering(param, terms)
        if covering:
            self.base.write_rows(param, rows, outs, covering)
        else:
            for out in outs:
                torch.index_select(param.tensor.detach(), 0, rows, out=out)

    def _covering(self, param: Param, terms: Sequence[Term]) -> list[Term]:
        return [t for t in terms if param.key in self.cover[t.seed]]
