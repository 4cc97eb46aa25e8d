"""ZO-SGD: theta <- theta - lr g, with g = sum_k c_k u(seed_k) drawn again from its seeds."""

from __future__ import annotations

from dataclasses import dataclass

from zo_core.base import (
    Cost,
    GradientEstimate,
    Moved,
    Params,
    State,
    UpdateRule,
    Write,
    scaled,
)


@dataclass(frozen=True)
class Sgd(UpdateRule):
    """The rule; it keeps no state, and g never exists as a tensor."""

    linear = True
    in_terms = True

    def apply_(
        self, params: Params, estimate: GradientEstimate, state: State, lr: float, write: Write
    ) -> tuple[State, Moved]:
        """Move ``params`` in one noise pass over all terms of the estimate."""
        terms = scaled(estimate.terms, -lr)
        write.terms_(params, estimate.distribution, terms)
        return state, terms

    def cost(self, params: Params) -> Cost:
        """One noise pass."""
        return Cost(noise_passes=1)
