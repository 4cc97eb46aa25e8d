"""Two-point SPSA along directions that are stretched block by block.

MeZO (arXiv 2305.17333), appendix B.3: perturb by z / D, so that a block with a large D is moved
less, and step along D z (the mean is the gradient as before: "modifying the variance") or along z
(the mean is the gradient over D: "modifying the expectation").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zo_core import noise
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
    derive_seed,
    float32,
    is_fake,
)
from zo_core.blocks import Block, blocks
from zo_core.estimators.layerwise import cost_of_each_block, each_block, slopes
from zo_core.estimators.two_point import both_sides, central_difference, check_eps
from zo_core.register import pick
from zo_core.structured.scaled import Scaled

SCALES = ("parameter_norm", "gradient_norm")

LEAST = 0.01
"""The smallest D, so that no block is perturbed by more than a hundred times eps."""

_ROW = 1024


@dataclass(frozen=True)
class BlockScaled(Estimator):
    """The estimator; its state is D, a number a block; None while it is still to be measured."""

    eps: float
    distribution: Distribution
    scale: str
    """What D is: the norm of a block's weights when the run begins, or the size of its slope in
    the first step; over the root of how many they are, and over the mean of all blocks."""
    keeps_mean: bool
    """Whether g is along D z (else along z)."""

    def __post_init__(self) -> None:
        """Refuse scales that are not there."""
        check_eps(self.eps)
        pick("scale", self.scale, SCALES)

    @property
    def needs_theta_back(self) -> bool:
        """Yes: it looks along z / D, and the estimate is along D z or z."""
        return True

    def init(self, params: Params) -> State:
        """Return D where it hangs on the weights alone."""
        if self.scale == "gradient_norm":
            return None
        with torch.no_grad():
            return normalised([_root_mean_square(block) for block in blocks(params)])

    def plan(self, params: Params, seed: int, state: State) -> Plan:
        """Look at both sides of theta along z / D; in a measuring step, along each block too."""
        held = blocks(params)
        d = (1.0,) * len(held) if state is None else state
        inverse = Scaled(self.distribution, _by_tensor(held, [1.0 / x for x in d]))
        looks = [Look(inverse, both_sides(seed, self.eps))]
        if state is None:
            measuring = derive_seed(seed, "measure")
            looks.append(each_block(params, self.distribution, measuring, self.eps))
        stretched = Scaled(self.distribution, _by_tensor(held, d))
        along = stretched if self.keeps_mean else self.distribution
        return Plan(along, tuple(looks), (seed, [block.elements for block in held]))

    def estimate(self, plan: Plan, losses: Sequence[float], state: State) -> GradientEstimate:
        """Return c D z or c z; the D that was measured goes along, for the log."""
        seed, elements = plan.note
        term = Term(seed, central_difference(losses[:2], self.eps))
        measured: tuple[float, ...] = ()
        if state is None:
            terms = slopes(plan.looks[1], losses[2:], self.eps)
            sizes = [
                abs(t.coefficient) / math.sqrt(n) for t, n in zip(terms, elements, strict=True)
            ]
            measured = normalised(sizes)
        return GradientEstimate(plan.distribution, (term,), tuple(losses), extra=measured)

    def advance(
        self, params: Params, plan: Plan, estimate: GradientEstimate, state: State
    ) -> State:
        """Keep D, once it is known."""
        return estimate.extra if state is None else state

    def cost(self, params: Params, perturber: Perturber) -> Cost:
        """Two queries; where D is measured, the first step (the dearest) two more a block."""
        cost = perturber.cost(params, both_sides(0, self.eps))
        if self.scale == "gradient_norm":
            return cost + cost_of_each_block(params, perturber, self.eps)
        # Squares of one piece in float64, in ``init``.
        return cost + Cost(scratch_bytes=noise.piece_bytes(params, 4))


def normalised(sizes: Sequence[float]) -> tuple[float, ...]:
    """Divide by the mean and round to float32; a block without size (all zeros) gets 1."""
    known = [x for x in sizes if x > 0]
    mean = sum(known) / len(known) if known else 1.0
    return tuple(float32(max(x / mean, LEAST)) if x > 0 else 1.0 for x in sizes)


def _by_tensor(held: Sequence[Block], values: Sequence[float]) -> Mapping[int, float]:
    pairs = zip(held, values, strict=True)
    return {param.key: value for block, value in pairs for param in block.params}


def _root_mean_square(block: Block) -> float:
    if any(is_fake(p.tensor) for p in block.params):
        return 1.0  # a tracer of memory has no values
    total = 0.0
    for param in block.params:
        squares = [sum_of_squares(piece.part) for piece in noise.pieces((param,))]
        total += torch.stack(squares).sum().item()
    return math.sqrt(total / block.elements)


def sum_of_squares(part: Tensor) -> Tensor:
    """Return the sum of squares of ``part``, shape (n,), as a float64 of shape ().

    Row by row, each added up by one thread: the same bits for any number of threads.
    """
    squares = part.double().square()
    even = squares.numel() // _ROW * _ROW
    return squares[:even].view(-1, _ROW).sum(1).sum() + squares[even:].sum()
