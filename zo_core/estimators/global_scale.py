"""Two-point SPSA whose step is scaled by the root of one second moment: MEAZO.

Dbouk, Gazagnadou, Reisser and Louizos, "On adaptivity in zeroth-order optimization", 2026, arXiv
2605.03869. In high dimensions the entries of a zeroth-order gradient differ by chance alone, so
one number does for all what Adam keeps for each::

    v <- beta v + (1 - beta) c^2;   lr_t = lr / (sqrt(v / (1 - beta^t)) + zeta)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from zo_core.base import (
    Cost,
    Distribution,
    Estimator,
    GradientEstimate,
    Params,
    Perturber,
    Plan,
    State,
    coefficient,
)
from zo_core.estimators.two_point import TwoPoint


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
        """Return c u, with the rate of this step; ``extra`` is the new v."""
        taken, v = state
        g = self._two_point.estimate(plan, losses, None)
        v = coefficient(self.beta * v + (1 - self.beta) * g.terms[0].coefficient ** 2)
        root = (v / (1 - self.beta ** (taken + 1))) ** 0.5
        return replace(g, extra=(v,), rate=1 / (root + self.zeta))

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
