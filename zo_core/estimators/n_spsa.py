"""n-SPSA: g = 1/n sum_k c_k u_k, the mean of n two-point estimates on one minibatch.

MeZO (arXiv 2305.17333), Definition 1 and Algorithm 2; the sample schedule is that of Table 6. The
estimate is n pairs (seed, c_k / n): no gradient is ever a tensor. Its mean is that of a single
two-point estimate, and for Gaussian u its second moment is (d + n + 1)/n ||grad||^2.
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
    derive_seed,
)
from zo_core.estimators.two_point import both_sides, central_difference, check_eps


@dataclass(frozen=True)
class NSpsa(Estimator):
    """The estimator; its state counts the steps taken, for the schedule."""

    eps: float
    distribution: Distribution
    samples: int
    """n; the largest one where it grows."""
    growth_steps: int = 0
    """Steps after which n grows by one, from 1 on; 0: n is constant."""
    scale_lr: bool = False
    """Whether the learning rate is multiplied by n."""

    def __post_init__(self) -> None:
        """Refuse scales and counts that measure nothing."""
        check_eps(self.eps)
        if self.samples < 1:
            raise ValueError(f"samples must be 1 or more, got {self.samples}.")
        if self.growth_steps < 0:
            raise ValueError(f"growth_steps must be 0 or more, got {self.growth_steps}.")

    def init(self, params: Params) -> State:
        """No step was taken."""
        return 0

    def plan(self, params: Params, seed: int, state: State) -> Plan:
        """Look at both sides of theta along each direction; between two, one move leads."""
        seeds = [derive_seed(seed, "sample", k) for k in range(self._samples(state))]
        return Plan(self.distribution, (Look(self.distribution, self._points(seeds)),), seeds)

    def estimate(self, plan: Plan, losses: Sequence[float], state: State) -> GradientEstimate:
        """Return the mean, as a term a direction."""
        seeds: list[int] = plan.note
        n = len(seeds)
        pairs = zip(losses[::2], losses[1::2], strict=True)
        terms = tuple(
            Term(seed, coefficient(central_difference(pair, self.eps) / n))
            for seed, pair in zip(seeds, pairs, strict=True)
        )
        rate = float(n) if self.scale_lr else 1.0
        return GradientEstimate(plan.distribution, terms, tuple(losses), rate=rate)

    def advance(
        self, params: Params, plan: Plan, estimate: GradientEstimate, state: State
    ) -> State:
        """Count the step."""
        return state + 1

    def cost(self, params: Params, perturber: Perturber) -> Cost:
        """2 n queries, and the noise of n directions."""
        looked = perturber.cost(params, self._points(range(self.samples)))
        # An update draws every term of the estimate; the rule declares the first.
        return looked + Cost(noise_passes=self.samples - 1)

    def _samples(self, step: int) -> int:
        if not self.growth_steps:
            return self.samples
        return min(self.samples, 1 + step // self.growth_steps)

    def _points(self, seeds: Sequence[int]) -> tuple[Point, ...]:
        return tuple(point for seed in seeds for point in both_sides(seed, self.eps))
