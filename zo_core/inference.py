"""A method that trains nothing: a step is one forward pass, the floor of time and memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zo_core.base import (
    Cost,
    Objective,
    Params,
    Span,
    State,
    StepInfo,
    finite,
    no_span,
)


@dataclass(frozen=True)
class Inference:
    """The method; what it is called depends on what stands in the prompt."""

    @property
    def needs_gradient(self) -> bool:
        """No."""
        return False

    def init(self, params: Params) -> State:
        """Keep nothing."""
        return None

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
        """Evaluate the objective once; ``seed`` and ``lr`` are not used."""
        with span("forward"), torch.inference_mode():
            value = finite(objective())
        return state, StepInfo((value,), queries=1)

    def cost(self, params: Params) -> Cost:
        """One query."""
        return Cost(queries=1)
