"""Block by block: g = sum_b c_b u_b, with u_b living on block b alone.

c_b = [f(theta + eps u_b) - f(theta - eps u_b)] / (2 eps), all at the same theta, 2 L queries for L
blocks. The mean is the gradient up to O(eps^2); ||g||^2 is that of L small problems, so about
sum_b d_b ||grad_b||^2, where one direction over all costs d ||grad||^2.
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
    Point,
    State,
    Term,
    derive_seed,
)
from zo_core.blocks import blocks
from zo_core.estimators.two_point import both_sides, central_difference, check_eps
from zo_core.structured.block import OnBlocks


@dataclass(frozen=True)
class Layerwise(Estimator):
    """The estimator; it keeps no state."""

    eps: float
    distribution: Distribution

    def __post_init__(self) -> None:
        """Refuse a scale that measures nothing."""
        check_eps(self.eps)

    def plan(self, params: Params, seed: int, state: State) -> Plan:
        """Look at both sides of theta along each block's direction."""
        look = each_block(params, self.distribution, seed, self.eps)
        return Plan(look.distribution, (look,))

    def estimate(self, plan: Plan, losses: Sequence[float], state: State) -> GradientEstimate:
        """Return the sum, a term a block."""
        (look,) = plan.looks
        return GradientEstimate(plan.distribution, slopes(look, losses, self.eps), tuple(losses))

    def cost(self, params: Params, perturber: Perturber) -> Cost:
        """Two queries a block; as every entry is in one block, the noise of one direction."""
        return cost_of_each_block(params, perturber, self.eps)


def each_block(params: Params, distribution: Distribution, seed: int, eps: float) -> Look:
    """Return the look at both sides of theta along each block's own direction."""
    # The number tells blocks apart: published code drew every block from one seed.
    cover = {derive_seed(seed, "block", n): block.keys for n, block in enumerate(blocks(params))}
    points: list[Point] = []
    for block_seed in cover:
        points += both_sides(block_seed, eps)
    return Look(OnBlocks(distribution, cover), tuple(points))


def slopes(look: Look, losses: Sequence[float], eps: float) -> tuple[Term, ...]:
    """Return (seed, c) of each block, from the losses of such a look."""
    seeds = [point[0].seed for point in look.points[::2]]
    pairs = zip(losses[::2], losses[1::2], strict=True)
    return tuple(
        Term(seed, central_difference(pair, eps)) for seed, pair in zip(seeds, pairs, strict=True)
    )


def cost_of_each_block(params: Params, perturber: Perturber, eps: float) -> Cost:
    """Declare the cost of such a look; every pass is over one block of ``n``."""
    n = len(blocks(params))
    looks = perturber.cost(params, [p for seed in range(n) for p in both_sides(seed, eps)])
    return replace(looks, noise_passes=math.ceil(looks.noise_passes / n))
