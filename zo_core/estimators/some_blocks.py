"""Two-point SPSA over a few blocks a step: g = c u, with u living on the chosen blocks alone.

The rest of theta is neither perturbed nor moved, so perturbing and updating cost a fraction of
what they do over all: LeZO (arXiv 2410.09823) counts them as over half of a step of MeZO.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from zo_core.base import (
    Cost,
    Distribution,
    Estimator,
    GradientEstimate,
    Look,
    Params,
    Perturber,
    Plan,
    State,
    Term,
    coefficient,
    derive_seed,
)
from zo_core.blocks import Block, blocks
from zo_core.estimators.two_point import both_sides, central_difference, check_eps
from zo_core.register import pick
from zo_core.structured.block import OnBlocks

ORDERS = ("random", "cyclic")


@dataclass(frozen=True)
class SomeBlocks(Estimator):
    """The estimator; its state counts the steps taken, for the cycle."""

    eps: float
    distribution: Distribution
    blocks_per_step: int
    order: str
    unbiased: bool
    """Whether g is multiplied by (blocks) / (blocks a step)."""

    def __post_init__(self) -> None:
        """Refuse what chooses nothing."""
        check_eps(self.eps)
        pick("order", self.order, ORDERS)
        if self.blocks_per_step < 1:
            raise ValueError(f"blocks_per_step must be 1 or more, got {self.blocks_per_step}.")

    def init(self, params: Params) -> State:
        """No step was taken."""
        return 0

    def plan(self, params: Params, seed: int, state: State) -> Plan:
        """Look at both sides of theta along a direction over the chosen blocks."""
        held = blocks(params)
        keys = frozenset(key for block in self._chosen(held, seed, state) for key in block.keys)
        along = OnBlocks(self.distribution, {seed: keys})
        times = len(held) / self._count(held) if self.unbiased else 1.0
        return Plan(along, (Look(along, both_sides(seed, self.eps)),), (seed, times))

    def estimate(self, plan: Plan, losses: Sequence[float], state: State) -> GradientEstimate:
        """Return c u, over the chance to be chosen where that was asked."""
        seed, times = plan.note
        c = coefficient(central_difference(losses, self.eps) * times)
        return GradientEstimate(plan.distribution, (Term(seed, c),), tuple(losses))

    def advance(
        self, params: Params, plan: Plan, estimate: GradientEstimate, state: State
    ) -> State:
        """Count the step."""
        return state + 1

    def cost(self, params: Params, perturber: Perturber) -> Cost:
        """Two queries; noise passes over the largest blocks, rounded up to passes over all."""
        whole = perturber.cost(params, both_sides(0, self.eps))
        held = blocks(params)
        sizes = sorted((block.elements for block in held), reverse=True)
        share = sum(sizes[: self._count(held)]) / params.elements
        return replace(whole, noise_passes=math.ceil(whole.noise_passes * share))

    def _count(self, held: Sequence[Block]) -> int:
        return min(self.blocks_per_step, len(held))

    def _chosen(self, held: Sequence[Block], seed: int, step: int) -> list[Block]:
        count = self._count(held)
        if self.order == "cyclic":
            return [held[(step * count + i) % len(held)] for i in range(count)]
        # The lowest of independent draws: every subset is equally likely, whatever the Python.
        draws = {block: derive_seed(seed, "choice", block.name) for block in held}
        return sorted(held, key=draws.__getitem__)[:count]
