"""The support of R-MeZO: entries chosen by a coin each, thrown again from a seed when asked."""

from __future__ import annotations

from dataclasses import dataclass

from zo_core import noise
from zo_core.base import Cost, Distribution, Params, State, derive_seed
from zo_core.estimators.restricted import Support
from zo_core.structured.magnitude import check_fraction
from zo_core.structured.masked import Masked
from zo_core.structured.masks import RandomEntries, trained


@dataclass(frozen=True)
class Coins(Support):
    """The support; its state is the seed of a mask that stays, once there is one."""

    trained_fraction: float
    resample: bool
    """Whether every step has a mask of its own; else the first step's stays."""

    def __post_init__(self) -> None:
        """Refuse what selects nothing."""
        check_fraction(self.trained_fraction)

    def restricted(
        self, base: Distribution, params: Params, seed: int, state: State
    ) -> Distribution:
        """Return ``base`` on the entries of the mask."""
        return Masked(base, self._mask(seed, state))

    def advance(self, seed: int, state: State) -> State:
        """Keep the seed of a mask that stays."""
        return None if self.resample else self._mask(seed, state).seed

    def trained_entries(self, params: Params, state: State) -> int:
        """Count the entries of a mask that stays; of others, the expected count."""
        if state is None:
            return round(self.trained_fraction * params.elements)
        return trained(params, RandomEntries(self.trained_fraction, state))

    def cost(self, params: Params) -> Cost:
        """Nothing kept: the mask of a piece is drawn beside its directions."""
        return Cost(scratch_bytes=noise.piece_bytes(params, 4))

    def _mask(self, seed: int, state: State) -> RandomEntries:
        mine = derive_seed(seed, "mask") if state is None else state
        return RandomEntries(self.trained_fraction, mine)
