"""The support of Sparse-MeZO: the entries of small magnitude, found anew as theta moves.

A threshold a tensor, fixed before training; the comparison is made every step, or every few. It
must be made on theta unperturbed: after + eps u other entries are small, and u can't be undone.

A threshold of zero would let a tensor that starts at zero (LoRA's B, a new head, biases) move
once and then freeze it for good: there are no small entries to choose in it, so all are trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from zo_core import noise
from zo_core.base import Cost, Distribution, Param, Params, State
from zo_core.estimators.restricted import Support
from zo_core.register import pick
from zo_core.structured import magnitude
from zo_core.structured.masked import Masked
from zo_core.structured.masks import (
    DenseMask,
    PackedMask,
    SmallWeights,
    packed_bytes,
    trained,
)

STORAGES = ("in_forward", "packed", "dense")

_EMPTY: dict[str, Callable[[Params], PackedMask | DenseMask]] = {
    "packed": PackedMask.empty,
    "dense": DenseMask.empty,
}


@dataclass(frozen=True, eq=False)
class Held:
    """The support's state."""

    rule: SmallWeights
    stored: PackedMask | DenseMask | None  # None: the rule is asked where it is used
    steps: int = 0


@dataclass(frozen=True)
class SmallEntries(Support):
    """The support."""

    trained_fraction: float
    storage: str
    refresh: int
    """Steps between two looks at which entries are small."""

    def __post_init__(self) -> None:
        """Refuse what can't be."""
        magnitude.check_fraction(self.trained_fraction)
        pick("storage", self.storage, STORAGES)
        if self.refresh < 1:
            raise ValueError(f"refresh must be 1 step or more, got {self.refresh}.")
        if self.storage == "in_forward" and self.refresh > 1:
            raise ValueError(
                "storage = 'in_forward' keeps no mask, so refresh must be 1; to hold a mask for "
                "several steps, use storage = 'packed'."
            )

    @property
    def reads_weights(self) -> bool:
        """Yes, where nothing is stored."""
        return self.storage == "in_forward"

    def init(self, params: Params) -> State:
        """Find the thresholds, and the mask of the first step where it is stored."""
        rule = SmallWeights({p.key: self._threshold(p) for p in params})
        if self.storage == "in_forward":
            return Held(rule, None)
        stored = _EMPTY[self.storage](params)
        stored.write_(params, rule)
        return Held(rule, stored)

    def restricted(
        self, base: Distribution, params: Params, seed: int, state: State
    ) -> Distribution:
        """Return ``base`` on the small entries; a stored mask is rewritten where it is due."""
        if state.stored is None:
            return Masked(base, state.rule)
        if state.steps % self.refresh == 0:
            state.stored.write_(params, state.rule)
        return Masked(base, state.stored)

    def advance(self, seed: int, state: State) -> State:
        """Count the step."""
        return replace(state, steps=state.steps + 1)

    def trained_entries(self, params: Params, state: State) -> int:
        """Count the small entries: now, or when the stored mask was written."""
        return trained(params, state.rule if state.stored is None else state.stored)

    def cost(self, params: Params) -> Cost:
        """Nothing kept (a number a tensor), or a bit or a number an entry."""
        kept = {"in_forward": 0, "packed": packed_bytes(params), "dense": params.bytes}
        # |theta|, two masks of bytes and the sum of terms; the thresholds of ``init`` need more.
        pieces = noise.piece_bytes(params, 4)
        scratch = max(pieces, magnitude.scratch_bytes(params))
        return Cost(state_bytes=kept[self.storage], scratch_bytes=scratch)

    def _threshold(self, param: Param) -> float:
        k = magnitude.count_of(self.trained_fraction, param.tensor.numel())
        return magnitude.kth_magnitude(param, k) or math.inf
