"""One-point residual feedback: what the step before saw stands in for the second look.

g_t = c_t u_t with c_t = [f(theta_t + eps u_t) - f(theta_{t-1} + eps u_{t-1})] / eps.

Zhang, Zhou, Ji and Zavlanos, "A new one-point residual-feedback oracle for black-box learning and
control", arXiv 2006.10820; tried in MeZO (arXiv 2305.17333), Table 11. The loss of the step before
does not hang on u_t, so its part has mean zero: the mean of g is the gradient up to O(eps^2). But
it was seen at other weights and on another minibatch, and that difference is divided by eps.
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
    State,
    Term,
    coefficient,
)
from zo_core.estimators.two_point import check_eps


@dataclass(frozen=True)
class Residual(Estimator):
    """The estimator; its state is the loss seen last, a float32 number; None before the first."""

    eps: float
    distribution: Distribution

    def __post_init__(self) -> None:
        """Refuse a scale that measures nothing."""
        check_eps(self.eps)

    def plan(self, params: Params, seed: int, state: State) -> Plan:
        """Look at theta + eps u."""
        look = Look(self.distribution, ((Term(seed, self.eps),),))
        return Plan(self.distribution, (look,), seed)

    def estimate(self, plan: Plan, losses: Sequence[float], state: State) -> GradientEstimate:
        """Return c u; c is 0 in the first step, which has nothing to compare with."""
        # The difference is of the rounded losses, as a resumed run has to form it.
        now = coefficient(losses[0])
        c = 0.0 if state is None else coefficient((now - state) / self.eps)
        term = Term(plan.note, c)
        return GradientEstimate(plan.distribution, (term,), tuple(losses), extra=(now,))

    def advance(
        self, params: Params, plan: Plan, estimate: GradientEstimate, state: State
    ) -> State:
        """Keep the loss."""
        return estimate.extra[0]

    def cost(self, params: Params, perturber: Perturber) -> Cost:
        """One query."""
        return perturber.cost(params, ((Term(0, self.eps),),))
