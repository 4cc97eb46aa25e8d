"""Two-point SPSA on some of the entries: g = c (m * u), with the entries chosen by a support.

What it estimates is m * gradient: the rest of theta is neither perturbed nor moved, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from zo_core.base import (
    Cost,
    Distribution,
    Estimator,
    GradientEstimate,
    Params,
    Perturber,
    Plan,
    State,
)
from zo_core.estimators.two_point import TwoPoint, check_eps


class Support(Protocol):
    """Says which entries move. Its state after a step hangs on the weights and seeds alone."""

    @property
    def reads_weights(self) -> bool:
        """Whether it reads the weights where directions are added: they must be clean there."""
        return False

    def init(self, params: Params) -> State:
        """Return the state before the first step."""
        return None

    def restricted(
        self, base: Distribution, params: Params, seed: int, state: State
    ) -> Distribution:
        """Return ``base`` on the entries that the step of ``seed`` moves; theta is clean now."""
        ...

    def advance(self, seed: int, state: State) -> State:
        """Return the state after the step of ``seed``."""
        return state

    def trained_entries(self, params: Params, state: State) -> int:
        """Count the entries that move."""
        ...

    def cost(self, params: Params) -> Cost:
        """Declare what it keeps, and its scratch beside the noise kernel's."""
        ...


@dataclass(frozen=True)
class Restricted(Estimator):
    """The estimator; its state is the support's."""

    eps: float
    base: Distribution
    support: Support

    def __post_init__(self) -> None:
        """Refuse a scale that measures nothing."""
        check_eps(self.eps)

    @property
    def reads_weights(self) -> bool:
        """As the support does."""
        return self.support.reads_weights

    @property
    def freezes_entries(self) -> bool:
        """Yes."""
        return True

    def init(self, params: Params) -> State:
        """Return the support's state."""
        return self.support.init(params)

    def plan(self, params: Params, seed: int, state: State) -> Plan:
        """Fix the entries from theta as it stands, then look at both sides of it."""
        along = self.support.restricted(self.base, params, seed, state)
        return TwoPoint(self.eps, along).plan(params, seed, None)

    def estimate(self, plan: Plan, losses: Sequence[float], state: State) -> GradientEstimate:
        """Return c (m * u)."""
        return TwoPoint(self.eps, plan.distribution).estimate(plan, losses, None)

    def advance(
        self, params: Params, plan: Plan, estimate: GradientEstimate, state: State
    ) -> State:
        """Return the support's next state."""
        return self.support.advance(plan.note, state)

    def trained_entries(self, params: Params, state: State) -> int:
        """Count the entries that move."""
        return self.support.trained_entries(params, state)

    def cost(self, params: Params, perturber: Perturber) -> Cost:
        """Two queries; what the support keeps."""
        looks = TwoPoint(self.eps, self.base).cost(params, perturber)
        own = self.support.cost(params)
        # A mask is read inside the perturber's passes: the scratch of both is alive at once.
        return replace(looks + own, scratch_bytes=looks.scratch_bytes + own.scratch_bytes)
