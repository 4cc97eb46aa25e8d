"""Directions of which one is held as tensors, and read instead of drawn again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from zo_core import noise
from zo_core.base import Distribution, Param, Piece, Term
from zo_core.structured import by_pieces


@dataclass(frozen=True, eq=False)
class Kept(Distribution):
    """The base's directions, but for that of ``seed``, which is ``tensors``."""

    base: Distribution
    seed: int
    tensors: Mapping[int, Tensor]
    """Key of a parameter -> the direction on it: same shape, contiguous. Whoever holds them
    declares them."""

    @property
    def name(self) -> str:
        """Name, as in records."""
        return self.base.name

    def draw(self, piece: Piece, terms: Sequence[Term]) -> Tensor:
        """Return ``sum_k c_k u(seed_k)`` for one piece; costs one more piece of scratch."""
        total = self.base.draw(piece, [t for t in terms if t.seed != self.seed])
        flat = self.tensors[piece.param.key].view(-1)
        kept = flat[piece.first : piece.first + piece.part.numel()]
        for term in terms:
            if term.seed == self.seed:
                # Rounded as the kernels do, which never contract: not add_(kept, alpha=c).
                total += kept.to(piece.wide) * term.coefficient
        return total

    def add_(self, params: Sequence[Param], terms: Sequence[Term]) -> None:
        """Add ``sum_k c_k u(seed_k)`` to ``params`` in one pass."""
        noise.add_by_pieces_(params, self, terms)

    def write(self, piece: Piece, outs: Sequence[Tensor], terms: Sequence[Term]) -> None:
        """Write ``piece`` plus (and minus) ``sum_k c_k u(seed_k)`` elsewhere, with one draw."""
        by_pieces.write(self, piece, outs, terms)
