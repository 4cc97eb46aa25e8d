"""One-sided differences: g = c u with c = [f(theta + eps u) - f(theta)] / eps.

Nesterov and Spokoiny, "Random gradient-free minimization of convex functions", Foundations of
Computational Mathematics 2017. Where u and -u are equally likely, f(theta) u and all other even
terms have mean zero, so the mean of g is that of the two-point estimate: the gradient up to
O(eps^2), and exactly the gradient where f is quadratic. A single c is off the slope along u by
eps/2 u^T H u, where a central difference is off by O(eps^2): that is variance, and grows with eps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zo_core.base import (
    Cost,
    Distribution,
    Estimator,
    GradientEstimate,
    Look,
    Params,
    Perturber,
    Plan,
    Point,
    State,
    Term,
    coefficient,
)
from zo_core.estimators.two_point import check_eps


@dataclass(frozen=True)
class OneSided(Estimator):
    """The estimator; it keeps no state. Its first loss is that of theta itself."""

    eps: float
    distribution: Distribution

    def __post_init__(self) -> None:
        """Refuse a scale that measures nothing."""
        check_eps(self.eps)

    def plan(self, params: Params, seed: int, state: State) -> Plan:
        """Look at theta and at theta + eps u."""
        return Plan(self.distribution, (Look(self.distribution, self._points(seed)),), seed)

    def estimate(self, plan: Plan, losses: Sequence[float], state: State) -> GradientEstimate:
        """Return c u."""
        here, there = losses
        term = Term(plan.note, coefficient((there - here) / self.eps))
        return GradientEstimate(plan.distribution, (term,), tuple(losses))

    def cost(self, params: Params, perturber: Perturber) -> Cost:
        """Two queries, of which one is at theta and needs no noise."""
        return perturber.cost(params, self._points(0))

    def _points(self, seed: int) -> tuple[Point, ...]:
        return (), (Term(seed, self.eps),)
