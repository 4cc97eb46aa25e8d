"""Two-point SPSA: g = c u with c = [f(theta + eps u) - f(theta - eps u)] / (2 eps).

Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient
approximation", IEEE TAC 1992; MeZO (arXiv 2305.17333), Definition 1. The mean of g is the gradient
up to O(eps^2), and exactly the gradient where f is quadratic.

Differs from the paper's code in one thing: c is rounded to float32, so that a log of it is exact.
"""

from __future__ import annotations

import math
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


@dataclass(frozen=True)
class TwoPoint(Estimator):
    """The estimator; it keeps no state."""

    eps: float
    distribution: Distribution

    def __post_init__(self) -> None:
        """Refuse a scale that measures nothing."""
        check_eps(self.eps)

    def plan(self, params: Params, seed: int, state: State) -> Plan:
        """Look at theta + eps u and theta - eps u."""
        return Plan(
            self.distribution, (Look(self.distribution, both_sides(seed, self.eps)),), seed
        )

    def estimate(self, plan: Plan, losses: Sequence[float], state: State) -> GradientEstimate:
        """Return c u."""
        term = Term(plan.note, central_difference(losses, self.eps))
        return GradientEstimate(plan.distribution, (term,), tuple(losses))

    def cost(self, params: Params, perturber: Perturber) -> Cost:
        """Two queries."""
        return perturber.cost(params, both_sides(0, self.eps))


def both_sides(seed: int, eps: float) -> tuple[Point, Point]:
    """Return the two points of a central difference."""
    return (Term(seed, eps),), (Term(seed, -eps),)


def central_difference(losses: Sequence[float], eps: float) -> float:
    """Return c, float32; NonFiniteLoss where it is not finite."""
    plus, minus = losses
    return coefficient((plus - minus) / (2 * eps))


def check_eps(eps: float) -> None:
    """Refuse a scale that measures nothing."""
    if not 0 < eps < math.inf:
        raise ValueError(f"eps must be positive and finite, got {eps}.")
