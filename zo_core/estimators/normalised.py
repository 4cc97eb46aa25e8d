"""One-sided differences along N directions, over the standard deviation of their losses: FZOO.

Dang et al., ICLR 2026, arXiv 2506.09034::

    l_0 = f(theta);  l_i = f(theta + eps u_i), i = 1 .. N;  sigma = std of l_1 .. l_N
    g   = 1/N sum_i [(l_i - l_0) / sigma] u_i

sigma is about eps |grad f|, so g is about grad f / |grad f|: a normalised gradient whatever eps.
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
    derive_seed,
)
from zo_core.estimators.two_point import check_eps


@dataclass(frozen=True)
class Normalised(Estimator):
    """The estimator; it keeps no state."""

    eps: float
    distribution: Distribution
    candidates: int

    def __post_init__(self) -> None:
        """Refuse what measures nothing."""
        check_eps(self.eps)
        if self.candidates < 2:
            raise ValueError(f"candidates must be 2 or more, got {self.candidates}.")

    def plan(self, params: Params, seed: int, state: State) -> Plan:
        """Look at theta, and at theta + eps u_i for every candidate."""
        seeds = tuple(derive_seed(seed, "candidate", i) for i in range(self.candidates))
        look = Look(self.distribution, _points(seeds, self.eps))
        return Plan(self.distribution, (look,), seeds)

    def estimate(self, plan: Plan, losses: Sequence[float], state: State) -> GradientEstimate:
        """Return the mean of what the candidates say, in units of their spread.

        Where all candidates have the same loss there is nothing to tell them apart by, and the
        estimate is 0 (a score such as an accuracy does that).
        """
        here, *seen = losses
        sigma = spread(seen) or math.inf
        terms = tuple(
            Term(seed, coefficient((loss - here) / (len(seen) * sigma)))
            for seed, loss in zip(plan.note, seen, strict=True)
        )
        return GradientEstimate(plan.distribution, terms, tuple(losses))

    def cost(self, params: Params, perturber: Perturber) -> Cost:
        """N + 1 queries, and the noise of N directions."""
        looks = perturber.cost(params, _points(range(self.candidates), self.eps))
        # An update draws every term of the estimate; the rule declares the first.
        return looks + Cost(noise_passes=self.candidates - 1)


def spread(losses: Sequence[float]) -> float:
    """Return the standard deviation of ``losses``, with N below (as in the released code)."""
    mean = math.fsum(losses) / len(losses)
    return math.sqrt(math.fsum((x - mean) ** 2 for x in losses) / len(losses))


def _points(seeds: Sequence[int], eps: float) -> tuple[Point, ...]:
    return ((), *((Term(seed, eps),) for seed in seeds))
