"""The support of extreme sparsity: a few entries a tensor, chosen once and held as a list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from zo_core import noise
from zo_core.base import Cost, Distribution, Param, Params, Piece, State, is_fake
from zo_core.estimators.restricted import Support
from zo_core.register import pick
from zo_core.structured import magnitude
from zo_core.structured.gathered import Chosen, Gathered

CRITERIA = ("largest", "smallest")


@dataclass(frozen=True)
class ChosenEntries(Support):
    """The support; its state maps a tensor's key to what is chosen in it."""

    trained_fraction: float
    criterion: str

    def __post_init__(self) -> None:
        """Refuse what selects nothing."""
        magnitude.check_fraction(self.trained_fraction)
        pick("criterion", self.criterion, CRITERIA)

    def init(self, params: Params) -> State:
        """Choose; of equal magnitudes the first in the tensor."""
        return {p.key: Chosen.of(p, self._places(p)) for p in params}

    def restricted(
        self, base: Distribution, params: Params, seed: int, state: State
    ) -> Distribution:
        """Return ``base`` on the chosen entries."""
        return Gathered(base, state)

    def trained_entries(self, params: Params, state: State) -> int:
        """Count the places."""
        return sum(chosen.places.numel() for chosen in state.values())

    def cost(self, params: Params) -> Cost:
        """Four bytes a chosen entry (eight in a tensor of 2^31 or more)."""
        kept = sum(self._count(p) * _index_dtype(p).itemsize for p in params)
        # Choosing: |theta|, two masks, running counts and places (int64 both). Using: less.
        scratch = noise.piece_bytes(params, 8)
        return Cost(state_bytes=kept, scratch_bytes=max(scratch, magnitude.scratch_bytes(params)))

    def _count(self, param: Param) -> int:
        return magnitude.count_of(self.trained_fraction, param.tensor.numel())

    def _places(self, param: Param) -> Tensor:
        count = self._count(param)
        out = torch.empty(count, dtype=_index_dtype(param), device=param.tensor.device)
        if is_fake(param.tensor):
            return out
        at = 0
        for chosen, first in self._chosen(param, count):
            places = chosen.nonzero().view(-1).add_(first)
            out[at : at + places.numel()] = places
            at += places.numel()
        return out

    def _chosen(self, param: Param, count: int) -> Iterator[tuple[Tensor, int]]:
        """Walk the tensor; yield which entries of each piece are chosen, and its first place."""
        largest = self.criterion == "largest"
        elements = param.tensor.numel()
        edge = magnitude.kth_magnitude(param, elements + 1 - count if largest else count)

        def beyond(piece: Piece) -> tuple[Tensor, Tensor]:
            size = piece.part.abs()
            return (size > edge if largest else size < edge), size == edge

        before = sum(int(beyond(piece)[0].sum()) for piece in noise.pieces((param,)))
        ties = count - before
        for piece in noise.pieces((param,)):
            sure, tie = beyond(piece)
            yield sure | (tie & (tie.cumsum(0) <= ties)), piece.first
            ties -= min(ties, int(tie.sum()))


def _index_dtype(param: Param) -> torch.dtype:
    return torch.int32 if param.tensor.numel() <= 1 << 31 else torch.int64
