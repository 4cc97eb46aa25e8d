"""A first-order baseline: one forward, one backward, one step of an optimiser of torch.

The optimisers are torch's own, in their fused form: same arithmetic, and no temporaries as large
as the model, so that the baseline is the leanest fair rival on each device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zo_core.base import Cost, Objective, Params, Span, State, StepInfo, finite, no_span


@dataclass(frozen=True)
class FirstOrder:
    """A method around ``torch.optim``. Its state is the optimiser; gradients die with the step."""

    optimizer: Callable[[Sequence[Tensor]], torch.optim.Optimizer]
    state_copies: int
    """How many tensors of each parameter's shape and dtype the optimiser keeps."""
    state_scalars: int = 0
    """Single float32 numbers kept per tensor (a step count)."""

    @property
    def needs_gradient(self) -> bool:
        """Yes: autograd, and training mode (dropout as the model configures it)."""
        return True

    def init(self, params: Params) -> State:
        """Return the optimiser; torch allocates its buffers in the first step."""
        return self.optimizer(params.tensors)

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
        """Take one step of gradient descent. ``seed`` is not used.

        Raises:
            ValueError: the objective has no gradient.
            NonFiniteLoss: the loss was NaN or infinite; theta is untouched.

        """
        if not objective.differentiable:
            raise ValueError(
                "This objective is not differentiable; a first-order method can't use it. "
                "Use a zeroth-order method such as 'mezo'."
            )
        state.zero_grad(set_to_none=True)
        with span("forward"):
            loss = objective()
            value = finite(loss.detach())
        with span("backward"):
            torch.autograd.backward([loss])
            del loss
        with span("update"):
            for group in state.param_groups:
                group["lr"] = lr
            state.step()
            state.zero_grad(set_to_none=True)
        return state, StepInfo((value,), queries=1, backwards=1)

    def cost(self, params: Params) -> Cost:
        """One query, one backward; a gradient for every entry, beside the optimiser's buffers."""
        return Cost(
            queries=1,
            backwards=1,
            state_bytes=self.state_copies * params.bytes + 4 * self.state_scalars * len(params),
            scratch_bytes=params.bytes,
        )
