"""ZO-SGD: theta <- theta - lr g, with g = sum_k c_k u(seed_k) drawn again from its seeds."""

from __future__ import annotations

from dataclasses import dataclass

from zo_core.base import Cost, GradientEstimate, Moved, Params, State, Term


@dataclass(frozen=True)
class Sgd:
    """The rule; it keeps no state, and g never exists as a tensor."""

    def init(self, params: Params) -> State:
        """Keep nothing."""
        return None

    def apply_(
        self, params: Params, estimate: GradientEstimate, state: State, lr: float
    ) -> tuple[State, Moved]:
        """Move ``params`` in one noise pass over all terms of the estimate."""
        terms = [Term(t.seed, -lr * t.coefficient) for t in estimate.terms]
        estimate.distribution.add_(params, terms)
        return state, terms

    def cost(self, params: Params) -> Cost:
        """One noise pass."""
        return Cost(noise_passes=1)
