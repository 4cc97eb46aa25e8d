"""Two-point SPSA along matrices of low rank, half of which is held for a while.

LOZO (arXiv 2410.07698), Algorithm 1: the direction is U V^T; U is new in every step, V every
``interval`` steps. The estimator's state is two numbers: steps taken, and the seed of V.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from zo_core.base import (
    Cost,
    Estimator,
    GradientEstimate,
    Look,
    Params,
    Perturber,
    Plan,
    State,
    Term,
    derive_seed,
)
from zo_core.estimators.two_point import both_sides, central_difference, check_eps
from zo_core.structured import low_rank
from zo_core.structured.low_rank import LowRank


@dataclass(frozen=True)
class LowRankTwoPoint(Estimator):
    """The estimator; unbiased over draws of both factors, and within V's subspace between them."""

    eps: float
    rank: int
    interval: int

    def __post_init__(self) -> None:
        """Refuse what measures nothing."""
        check_eps(self.eps)
        LowRank(self.rank, 0)
        if self.interval < 1:
            raise ValueError(f"interval must be 1 step or more, got {self.interval}.")

    def init(self, params: Params) -> State:
        """Return (steps taken, seed of V)."""
        return 0, 0

    def plan(self, params: Params, seed: int, state: State) -> Plan:
        """Look at theta + eps u and theta - eps u; V is renewed when its time is up."""
        taken, held = state
        renewed = derive_seed(seed, "subspace") if taken % self.interval == 0 else held
        law = LowRank(self.rank, renewed)
        return Plan(law, (Look(law, both_sides(seed, self.eps)),), (seed, taken + 1, renewed))

    def estimate(self, plan: Plan, losses: Sequence[float], state: State) -> GradientEstimate:
        """Return c u."""
        term = Term(plan.note[0], central_difference(losses, self.eps))
        return GradientEstimate(plan.distribution, (term,), tuple(losses))

    def advance(
        self, params: Params, plan: Plan, estimate: GradientEstimate, state: State
    ) -> State:
        """Return the steps taken, and the seed of the V in use."""
        return plan.note[1:]

    def cost(self, params: Params, perturber: Perturber) -> Cost:
        """Two queries; the factors' rows come on top of what the perturber holds."""
        looks = perturber.cost(params, both_sides(0, self.eps))
        drawn = low_rank.scratch_bytes(params, self.rank)
        return replace(looks, scratch_bytes=looks.scratch_bytes + drawn)
