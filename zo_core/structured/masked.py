"""Directions with entries left out: u(seed) is the base's on those that a mask lets move.

A mask is asked piece by piece, where it is used; nothing dense is held unless the mask holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from zo_core import noise
from zo_core.base import Copies, Distribution, Param, Piece, Term
from zo_core.noise import rows as noise_rows
from zo_core.structured import by_pieces


class Mask(Protocol):
    """Says which entries stay where they are."""

    thresholds: Mapping[int, float] | None = None
    """By key of the tensor, where the frozen entries are those above it in magnitude, as they
    stand. The noise kernel compares them itself."""

    def frozen(self, piece: Piece) -> Tensor:
        """Return whether each entry of a piece is left out, shape (n,), bool."""
        ...


@dataclass(frozen=True)
class Masked(Distribution):
    """The base's directions on the entries that are not frozen."""

    base: Distribution
    mask: Mask

    @property
    def name(self) -> str:
        """Name, as in records."""
        return f"{self.base.name}, masked"

    @property
    def lasting(self) -> bool:  # type: ignore[override]
        """Where the mask is thresholds."""
        return self.base.law is not None and self.mask.thresholds is not None

    def draw(self, piece: Piece, terms: Sequence[Term]) -> Tensor:
        """Return ``sum_k c_k m u(seed_k)`` for one piece; a draw of the base and the mask."""
        # Minus zero: x + (-0.0) is x to the bit, whatever x is, and -0.0 + 0.0 is not.
        return self.base.draw(piece, terms).masked_fill_(self.mask.frozen(piece), -0.0)

    def add_(self, params: Sequence[Param], terms: Sequence[Term]) -> None:
        """Add ``sum_k c_k m u(seed_k)``; frozen entries keep their bits."""
        if self.base.law is None or self.mask.thresholds is None:
            noise.add_by_pieces_(params, self, terms)
        else:
            noise.add_(params, self.base.law, terms, thresholds=self.mask.thresholds)

    def write(self, piece: Piece, outs: Sequence[Tensor], terms: Sequence[Term]) -> None:
        """Write ``piece`` plus (and minus) ``sum_k c_k m u(seed_k)`` elsewhere, with one draw."""
        if self.base.law is None or self.mask.thresholds is None:
            by_pieces.write(self, piece, outs, terms)
        else:
            bound = self.mask.thresholds[piece.param.key]
            noise.write(piece, outs, self.base.law, terms, bound)

    def prepared(self, writes: Sequence[Copies]) -> Callable[[Sequence[Term]], None]:
        """Return what writes many pieces."""
        if self.base.law is None or self.mask.thresholds is None:
            return Distribution.prepared(self, writes)
        return noise.prepared(writes, self.base.law, self.mask.thresholds)

    def write_rows(
        self, param: Param, rows: Tensor, outs: Sequence[Tensor], terms: Sequence[Term]
    ) -> None:
        """Write rows of a matrix plus (and minus) ``sum_k c_k m u(seed_k)`` elsewhere."""
        if self.base.law is None or self.mask.thresholds is None:
            Distribution.write_rows(self, param, rows, outs, terms)
        else:
            bound = self.mask.thresholds[param.key]
            noise_rows.write(param, rows, outs, self.base.law, terms, bound)
