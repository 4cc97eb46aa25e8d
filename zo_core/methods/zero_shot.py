"""Zero-shot: no training. A step is one forward pass and changes nothing.

The floor of accuracy (what the model can do as it comes) and of memory (inference).

>>> import torch
>>> from zo_core import Closure, Params
>>> p = torch.tensor([1.0, -2.0, 3.0])
>>> params, zero_shot = Params([("w", p)]), method()
>>> loss = Closure(lambda: (p**2).sum())
>>> _, info = zero_shot.step_(params, loss, zero_shot.init(params), seed=0, lr=0.1)
>>> info.losses, info.queries, p.tolist()
((14.0,), 1, [1.0, -2.0, 3.0])
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from zo_core.base import (
    Cost,
    Method,
    Objective,
    Params,
    Span,
    State,
    StepInfo,
    finite,
    no_span,
)

TITLE = "Zero-shot (inference)"
PAPER = "no training"


@dataclass(frozen=True)
class ZeroShot:
    """The method that trains nothing."""

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


def method() -> Method:
    """Return the method."""
    return ZeroShot()
