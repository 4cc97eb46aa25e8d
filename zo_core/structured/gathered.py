"""Directions on a few chosen entries: noise is drawn for those alone.

The k chosen entries of a tensor are a stream of length k: the n-th of them gets element n. Where
k is a thousandth of the tensor, perturbing and updating cost a thousandth of a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from zo_core import noise
from zo_core.base import Distribution, Param, Piece, Term, is_fake


@dataclass(frozen=True, eq=False)
class Chosen:
    """The chosen entries of one tensor, and how many of them stand before each of its pieces."""

    places: Tensor  # (k,) int32 or int64, in row-major order, rising
    before: Mapping[int, int] = field(repr=False)  # by the first place of a piece

    @classmethod
    def of(cls, param: Param, places: Tensor) -> Chosen:
        """Count before every piece at once: the device is waited for here, and not in a step."""
        if is_fake(places):
            return cls(places, {})
        edges = noise.borders(param)
        counts = zip(edges, _count_before(places, edges), strict=True)
        return cls(places, {**dict(counts), param.tensor.numel(): places.numel()})

    def between(self, low: int, high: int) -> tuple[int, int]:
        """Return the stretch of ``places`` with low <= place < high; of borders it is known."""
        if is_fake(self.places):
            return 0, min(self.places.numel(), high - low)
        if low in self.before and high in self.before:
            return self.before[low], self.before[high]
        first, last = _count_before(self.places, [low, high])
        return first, last


@dataclass(frozen=True, eq=False)
class Gathered(Distribution):
    """The base's directions over the chosen entries; all others are not read or written."""

    base: Distribution
    chosen: Mapping[int, Chosen]  # by key of the tensor

    @property
    def name(self) -> str:
        """Name, as in records."""
        return f"{self.base.name}, gathered"

    def draw(self, piece: Piece, terms: Sequence[Term]) -> Tensor:
        """Return ``sum_k c_k u(seed_k)`` for one piece, zero where nothing was chosen."""
        # Minus zero: x + (-0.0) is x to the bit, whatever x is.
        out = torch.full_like(piece.part, -0.0, dtype=piece.wide)
        chosen = self.chosen[piece.param.key]
        first, last = chosen.between(piece.first, piece.first + piece.part.numel())
        if first < last:
            inside = chosen.places[first:last].long().sub_(piece.first)
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

    def write(self, piece: Piece, outs: Sequence[Tensor], terms: Sequence[Term]) -> None:
        """Write ``piece`` plus (and minus) ``sum_k c_k u(seed_k)`` elsewhere, with one draw."""
        for out in outs:
            out.copy_(piece.part)
        chosen = self.chosen[piece.param.key]
        low, high = chosen.between(piece.first, piece.first + piece.part.numel())
        for places, first in self._stretches(chosen.places[low:high], piece.part.device):
            inside = places - piece.first
            values = piece.part.take(inside)
            change = self.base.draw(Piece(piece.param, values, low + first), terms)
            for out in outs:
                out.put_(inside, (change + values).to(out.dtype))
                change.neg_()  # x - y is x + (-y), to the bit

    def _add_(self, param: Param, terms: Sequence[Term]) -> None:
        tensor, places = param.tensor.detach(), self.chosen[param.key].places
        for some, first in self._stretches(places, tensor.device):
            values = tensor.take(some)
            change = self.base.draw(Piece(param, values, first), terms)
            tensor.put_(some, change.add_(values).to(tensor.dtype))

    def _stretches(self, places: Tensor, device: torch.device) -> Iterator[tuple[Tensor, int]]:
        size = noise.piece_of(device)
        for first in range(0, places.numel(), size):
            yield places[first : first + size].long(), first


def _count_before(places: Tensor, edges: Sequence[int]) -> list[int]:
    sought = torch.tensor(edges, dtype=places.dtype, device=places.device)
    counts: list[int] = torch.searchsorted(places, sought).tolist()
    return counts
