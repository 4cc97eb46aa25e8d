"""A zeroth-order method: an estimator, then an update rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zo_core import noise
from zo_core.base import (
    Cost,
    Estimator,
    GradientEstimate,
    Objective,
    Params,
    Span,
    State,
    StepInfo,
    Term,
    UpdateRule,
    no_span,
)


@dataclass(frozen=True)
class ZerothOrder:
    """The composition that most zeroth-order papers are; state is a pair, one for each part."""

    estimator: Estimator
    update: UpdateRule

    @property
    def needs_gradient(self) -> bool:
        """No: the objective is run forward only, in evaluation mode."""
        return False

    def init(self, params: Params) -> State:
        """Return both parts' states."""
        return self.estimator.init(params), self.update.init(params)

    def step_(
        self,
        params: Params,
        objective: Objective,
        state: State,
        *,
        seed: int,
        lr: float,
        span: Span = no_span,
    ) -> tuple[State, StepInfo]:
        """Estimate along directions of ``seed``, then update. Theta is untouched on an error."""
        looked, moved = state
        estimate, looked = self.estimator.estimate(params, objective, seed, looked, span)
        with span("update"), torch.no_grad():
            moved, by = self.update.apply_(params, estimate, moved, lr)
        info = StepInfo(estimate.losses, queries=len(estimate.losses), estimate=estimate)
        return (self.estimator.moved(looked, by), moved), info

    def replay_(
        self, params: Params, terms: Sequence[Term], state: State, *, seed: int, lr: float
    ) -> State:
        """Take the step again that had the estimate ``terms``; the objective is not looked at."""
        looked, moved = state
        with torch.no_grad():
            law, looked = self.estimator.directions(params, seed, looked)
            estimate = GradientEstimate(law, tuple(terms), ())
            moved, by = self.update.apply_(params, estimate, moved, lr)
        return self.estimator.moved(looked, by), moved

    def cost(self, params: Params) -> Cost:
        """Add up what the parts declare; the noise kernel's scratch comes on top."""
        declared = self.estimator.cost(params) + self.update.cost(params)
        return declared + Cost(scratch_bytes=noise.scratch_bytes(params))
