"""The variance-reduced estimator: g = (c(theta) - c(theta_ref)) u + g_ref, one u, one minibatch.

Johnson and Zhang, "Accelerating stochastic gradient descent using predictive variance reduction",
NeurIPS 2013, with SPSA in the place of the gradients (MeZO-SVRG, arXiv 2404.08080). c(x) is the
central difference of the minibatch at x along u. The difference is small because u and the
minibatch are the same at both places; its mean over u is grad(theta) - grad(theta_ref).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from zo_core.base import (
    Cost,
    Distribution,
    Estimator,
    GradientEstimate,
    Look,
    Moved,
    Params,
    Perturber,
    Plan,
    State,
    Term,
    coefficient,
)
from zo_core.estimators.anchors import Anchor, Copied, WalkedBack
from zo_core.estimators.annealing import Annealed, Annealing
from zo_core.estimators.two_point import both_sides, central_difference, check_eps
from zo_core.register import pick

ANCHORS: dict[str, Anchor] = {"replay": WalkedBack(), "dense": Copied()}
"""By ``storage``."""


@dataclass(frozen=True)
class SvrgState:
    """What is kept between steps."""

    steps: int
    kept: State  # of the anchor
    reference: Term | None = None  # g_ref
    annealed: Annealed = field(default_factory=Annealed)


@dataclass(frozen=True)
class Svrg(Estimator):
    """The estimator. Every ``period`` steps is an anchor: an estimate over the anchor set."""

    eps: float
    distribution: Distribution
    period: int
    anchor_lr_ratio: float
    """Rate of an anchor step over that of the others."""
    storage: str
    annealing: Annealing

    def __post_init__(self) -> None:
        """Refuse what can't be."""
        check_eps(self.eps)
        check_period(self.period, self.anchor_lr_ratio)
        pick("storage", self.storage, ANCHORS)

    @property
    def walks_back(self) -> bool:
        """As the anchor does."""
        return self._anchor.walks_back

    @property
    def needs_theta_back(self) -> bool:
        """As the anchor does."""
        return self._anchor.needs_theta_back

    @property
    def _anchor(self) -> Anchor:
        return ANCHORS[self.storage]

    def init(self, params: Params) -> State:
        """Return the state before the first anchor."""
        return SvrgState(0, self._anchor.init(params))

    def plan(self, params: Params, seed: int, state: State) -> Plan:
        """Look at both sides of theta: on the anchor set, or on a minibatch and of theta_ref."""
        if self._drops(state):
            points = both_sides(seed, self.eps)
            return Plan(self.distribution, (Look(self.distribution, points, "anchor"),), seed)
        looks = self._anchor.looks(self.distribution, seed, self.eps, state.kept)
        return Plan(self._anchor.along(self.distribution, state.kept), looks, seed)

    def estimate(self, plan: Plan, losses: Sequence[float], state: State) -> GradientEstimate:
        """Return g_ref, or the difference and g_ref."""
        if self._drops(state):
            here, rate = list(losses), self.anchor_lr_ratio
            terms: tuple[Term, ...] = (Term(plan.note, central_difference(here, self.eps)),)
        else:
            four = [losses[at] for at in self._anchor.order]
            here, there = four[:2], four[2:]
            c, c_ref = (central_difference(pair, self.eps) for pair in (here, there))
            terms = (Term(plan.note, coefficient(c - c_ref)), state.reference)
            rate = 1.0
        return GradientEstimate(
            plan.distribution,
            terms,
            tuple(losses),
            extra=self.annealing.told(here),
            rate=rate * state.annealed.factor,
        )

    def advance(
        self, params: Params, plan: Plan, estimate: GradientEstimate, state: State
    ) -> State:
        """Count the step, and drop the anchor where it is one."""
        kept, reference = state.kept, state.reference
        if self._drops(state):
            (reference,) = estimate.terms
            kept = self._anchor.drop(params, self.distribution, reference, kept)
        annealed = self.annealing.after(state.annealed, estimate.extra)
        return SvrgState(state.steps + 1, kept, reference, annealed)

    def moved(self, state: State, by: Moved) -> State:
        """Tell the anchor."""
        kept = self._anchor.moved(state.kept, by)
        return SvrgState(state.steps, kept, state.reference, state.annealed)

    def cost(self, params: Params, perturber: Perturber) -> Cost:
        """Four queries, or two where every step is an anchor; noise as the anchor declares."""
        return self._anchor.cost(params, perturber, self.eps, self.period)

    def _drops(self, state: State) -> bool:
        return bool(state.steps % self.period == 0)


def check_period(period: int, anchor_lr_ratio: float) -> None:
    """Refuse a period without steps, and an anchor step that goes uphill."""
    if period < 1 or anchor_lr_ratio <= 0:
        raise ValueError(
            "period must be 1 step or more and anchor_lr_ratio above 0, got "
            f"{period} and {anchor_lr_ratio}."
        )
