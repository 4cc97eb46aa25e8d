"""Directions on a few chosen entries: noise is drawn for those alone.

The k chosen entries of a tensor are a stream of length k: the n-th of them gets element n. Where
k is a thousandth of the tensor, perturbing and updating cost a thousandth of a pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zo_core import noise
from zo_core.base import Distribution, Param, Piece, Term
from zo_core.structured.magnitude import is_fake


@dataclass(frozen=True, eq=False)
class Gathered(Distribution):
    """The base's directions over the chosen entries; all others are not read or written."""

    base: Distribution
    chosen: Mapping[int, Tensor]
    """Key of a tensor -> places in row-major order, (k,) int32 or int64, rising."""

    @property
    def name(self) -> str:
        """Name, as in records."""
        return f"{self.base.name}, gathered"

    def draw(self, piece: Piece, terms: Sequence[Term]) -> Tensor:
        """Return ``sum_k c_k u(seed_k)`` for one piece, zero where nothing was chosen.

        Waits for the device, to learn which of the chosen fall into the piece.
        """
        # Minus zero: x + (-0.0) is x to the bit, whatever x is.
        out = torch.full_like(piece.part, -0.0, dtype=piece.wide)
        places = self.chosen[piece.param.key]
        first, last = _between(places, piece.first, piece.first + piece.part.numel())
        if first < last:
            inside = places[first:last].long().sub_(piece.first)
            some = Piece(piece.param, out[: last - first], first)
            out.index_copy_(0, inside, self.base.draw(some, terms))
        return out

    def add_(self, params: Sequence[Param], terms: Sequence[Term]) -> None:
        """Add ``sum_k c_k u(seed_k)`` to the chosen entries; scratch is a few pieces of them."""
        if not terms:
            return
        with torch.no_grad():
            for param in params:
                self._add_(param, terms)

    def _add_(self, param: Param, terms: Sequence[Term]) -> None:
        tensor, places = param.tensor.detach(), self.chosen[param.key]
        for first in range(0, places.numel(), noise.PIECE):
            some = places[first : first + noise.PIECE].long()
            values = tensor.take(some)
            change = self.base.draw(Piece(param, values, first), terms)
            tensor.put_(some, change.add_(values).to(tensor.dtype))


def _between(places: Tensor, low: int, high: int) -> tuple[int, int]:
    """Return the stretch of ``places`` with low <= place < high."""
    if is_fake(places):
        return 0, min(places.numel(), high - low)
    edges = torch.tensor([low, high], dtype=places.dtype, device=places.device)
    first, last = torch.searchsorted(places, edges).tolist()
    return first, last
