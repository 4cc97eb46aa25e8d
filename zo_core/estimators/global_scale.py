"""Two-point SPSA whose step is scaled by the root of one second moment: MEAZO.

Dbouk, Gazagnadou, Reisser and Louizos, "On adaptivity in zeroth-order optimization", 2026, arXiv
2605.03869. In high dimensions the entries of a zeroth-order gradient differ by chance alone, so
one number does for all what Adam keeps for each::

    v <- beta v + (1 - beta) c^2;   g = c / (sqrt(v / (1 - beta^t)) + zeta) u

The scale is part of the coefficient, not of the learning rate: whatever else hangs on the rate,
decoupled weight decay above all, is not to grow as v shrinks. So ``Settings.clip`` bounds the
scaled coefficient (about 1 in size), and v is of the c that were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zo_core.base import (
    Cost,
    Distribution,
    Estimator,
    GradientEstimate,
    Params,
    Perturber,
    Plan,
    State,
    Term,
    coefficient,
)
from zo_core.estimators.two_point import TwoPoint, central_difference


@dataclass(frozen=True)
class GlobalScale(Estimator):
    """The estimator; its state is two numbers, the steps taken and v."""

    eps: float
    distribution: Distribution
    beta: float
    zeta: float

    def __post_init__(self) -> None:
        """Refuse what measures nothing, and a quotient that may be 0 / 0."""
        TwoPoint(self.eps, self.distribution)
        if not 0 <= self.beta < 1:
            raise ValueError(f"beta must be in [0, 1), got {self.beta}.")
        if not self.zeta > 0:
            raise ValueError(f"zeta must be positive, got {self.zeta}.")

    def init(self, params: Params) -> State:
        """Return (steps taken, v)."""
        return 0, 0.0

    def plan(self, params: Params, seed: int, state: State) -> Plan:
        """Look at theta + eps u and theta - eps u."""
        return self._two_point.plan(params, seed, None)

    def estimate(self, plan: Plan, losses: Sequence[float], state: State) -> GradientEstimate:
        """Return c u / (root of v, corrected, + zeta); ``extra`` is the new v."""
        taken, v = state
        c = central_difference(losses, self.eps)
        v = coefficient(self.beta * v + (1 - self.beta) * c**2)
        root = (v / (1 - self.beta ** (taken + 1))) ** 0.5
        term = Term(plan.note, coefficient(c / (root + self.zeta)))
        return GradientEstimate(plan.distribution, (term,), tuple(losses), extra=(v,))

    def advance(
        self, params: Params, plan: Plan, estimate: GradientEstimate, state: State
    ) -> State:
        """Return the steps taken, and v."""
        return state[0] + 1, estimate.extra[0]

    def cost(self, params: Params, perturber: Perturber) -> Cost:
        """Two queries."""
        return self._two_point.cost(params, perturber)

    @property
    def _two_point(self) -> TwoPoint:
        return TwoPoint(self.eps, self.distribution)
