"""Two-point SPSA scaled by a running estimate of the Hessian's diagonal: HiZOO.

Zhao, Dang, Ye, Dai, Qian and Tsang, ICLR 2025, arXiv 2402.15173, Algorithm 1, with h for their
Sigma^-1 (one number a weight, 1 at first) and alpha for their smooth scale::

    u ~ N(0, I);  l0, l+, l- = f at theta, theta + eps u / sqrt(h), theta - eps u / sqrt(h)
    h <- (1 - alpha) h + alpha h u^2 |l+ + l- - 2 l0| / (2 eps^2)
    g  = [(l+ - l-) / (2 eps)] u / sqrt(h)                               with the new h

What h is the mean of: for a convex quadratic with Hessian A, A_ii + h_i tr(A / h) / 2. The second
part shrinks what is learned towards h as it was (a paper's lemma takes it off; its algorithm, to
stay positive, does not).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

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
    Point,
    State,
    Term,
    coefficient,
)
from zo_core.estimators.two_point import both_sides, central_difference, check_eps
from zo_core.structured.elementwise import Elementwise


@dataclass(frozen=True)
class HessianInformed(Estimator):
    """The estimator; its state is h, float32, by tensor key. It is changed in place."""

    eps: float
    distribution: Distribution
    alpha: float

    def __post_init__(self) -> None:
        """Refuse what measures nothing, or lets h reach 0."""
        check_eps(self.eps)
        if not 0 <= self.alpha < 1:
            raise ValueError(f"smoothing must be in [0, 1), got {self.alpha}.")

    @property
    def needs_theta_back(self) -> bool:
        """Yes: the way back is along directions of the old h, and the update along new ones."""
        return True

    def init(self, params: Params) -> State:
        """Return h = 1."""
        return {
            p.key: torch.ones(p.tensor.numel(), dtype=torch.float32, device=p.tensor.device)
            for p in params
        }

    def plan(self, params: Params, seed: int, state: State) -> Plan:
        """Look at theta, and at both sides of it."""
        law = Elementwise(self.distribution, state)
        return Plan(law, (Look(law, _points(seed, self.eps)),), seed)

    def estimate(self, plan: Plan, losses: Sequence[float], state: State) -> GradientEstimate:
        """Return c u / sqrt(h), and the second difference as ``extra``."""
        here, plus, minus = losses
        term = Term(plan.note, central_difference((plus, minus), self.eps))
        bent = coefficient(abs(plus + minus - 2 * here) / (2 * self.eps**2))
        return GradientEstimate(plan.distribution, (term,), tuple(losses), extra=(bent,))

    def advance(
        self, params: Params, plan: Plan, estimate: GradientEstimate, state: State
    ) -> State:
        """Return the new h; the estimate's direction is drawn with it from now on."""
        (bent,) = estimate.extra
        for piece in noise.pieces(params):
            h = state[piece.param.key][piece.first : piece.first + piece.part.numel()]
            u = self.distribution.draw(piece, (Term(plan.note, 1.0),))
            # h + alpha h (b u^2 - 1), rounded once. In float32 a relative change below 3e-8
            # (6e-8 just above a power of two) is lost: at alpha = 1e-8 every fall, which is alpha
            # at most, and the rise for b u^2 below 4 (7). There h only grows.
            h.add_(u.square_().mul_(bent).sub_(1.0).mul_(h), alpha=self.alpha)
        return state

    def cost(self, params: Params, perturber: Perturber) -> Cost:
        """Three queries; h; a noise pass to learn it; and pieces on top of the perturber's."""
        looks = perturber.cost(params, _points(0, self.eps))
        return replace(
            looks,
            noise_passes=looks.noise_passes + 1,
            state_bytes=4 * params.elements,
            scratch_bytes=looks.scratch_bytes + noise.piece_bytes(params, 3),
        )


def _points(seed: int, eps: float) -> tuple[Point, ...]:
    return ((), *both_sides(seed, eps))
