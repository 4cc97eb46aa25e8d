"""Two-point SPSA: g = c u with c = [f(theta + eps u) - f(theta - eps u)] / (2 eps).

Spall, "Multivariate stochastic approximation using a simultaneous perturbation gradient
approximation", IEEE TAC 1992; MeZO (arXiv 2305.17333), Definition 1. The mean of g is the gradient
up to O(eps^2), and exactly the gradient where f is quadratic.

Differs from the paper's code in one thing: c is rounded to float32, so that a log of it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

from zo_core.base import (
    Cost,
    Distribution,
    GradientEstimate,
    Moved,
    NonFiniteLoss,
    Objective,
    Params,
    Perturber,
    Span,
    State,
    Term,
    float32,
    no_span,
)


@dataclass(frozen=True)
class TwoPoint:
    """The estimator; it keeps no state."""

    eps: float
    distribution: Distribution
    perturber: Perturber

    def __post_init__(self) -> None:
        """Refuse a scale that measures nothing."""
        if not self.eps > 0:
            raise ValueError(f"eps must be positive, got {self.eps}.")

    def init(self, params: Params) -> State:
        """Keep nothing."""
        return None

    def directions(self, params: Params, seed: int, state: State) -> tuple[Distribution, State]:
        """Return the one distribution there is."""
        return self.distribution, state

    def estimate(
        self, params: Params, objective: Objective, seed: int, state: State, span: Span = no_span
    ) -> tuple[GradientEstimate, State]:
        """Return the estimate along the direction of ``seed``. Two queries.

        Raises:
            NonFiniteLoss: a loss, or their difference, was not finite.

        """
        distribution, state = self.directions(params, seed, state)
        points = [(Term(seed, self.eps),), (Term(seed, -self.eps),)]
        plus, minus = self.perturber.losses(params, objective, distribution, points, span=span)
        c = float32((plus - minus) / (2 * self.eps))
        if c - c != 0:
            raise NonFiniteLoss(f"The projected gradient is {c}: the losses are {plus}, {minus}.")
        return GradientEstimate(distribution, (Term(seed, c),), (plus, minus)), state

    def moved(self, state: State, by: Moved) -> State:
        """Take no note: every step begins where theta is."""
        return state

    def cost(self, params: Params) -> Cost:
        """Two queries; three noise passes (there, across, back)."""
        return Cost(queries=2, noise_passes=3)
