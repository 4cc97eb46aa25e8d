"""A first-order baseline: one forward, one backward, one step of an optimiser of torch.

The optimisers are torch's own, in their fused form: same arithmetic, and no temporaries as large
as the model, so that the baseline is the leanest fair rival on each device. Weights, gradients
and states are in one dtype ("pure" half precision where that is 16 bits): no autocast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zo_core.base import (
    Cost,
    Objective,
    Params,
    Span,
    State,
    StepInfo,
    Unsupported,
    finite,
    no_span,
)
from zo_core.register import pick
from zo_core.writing import decays

Groups = list[dict[str, Any]]
"""Parameter groups of torch: which tensors, with which weight decay."""

_HALF_STEP = 2.0**-25  # half of float16's smallest number: what is below is rounded to zero


@dataclass(frozen=True)
class FirstOrder:
    """A method around ``torch.optim``. Its state is the optimiser; gradients die with the step."""

    optimizer: Callable[[Groups], torch.optim.Optimizer]
    state_bytes: Callable[[Params], int]
    """What the optimiser keeps between steps."""
    weight_decay: float = 0.0
    decay_group: str = "matrices"
    """What decays: "matrices" leaves biases and norms alone, "all" does not."""
    temporary_bytes: Callable[[Params], int] = lambda params: 0
    """What the optimiser allocates during its step, beside the gradients."""

    def __post_init__(self) -> None:
        """Refuse a decay that is none."""
        pick("decay_group", self.decay_group, ("matrices", "all"))
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay must be 0 or more, got {self.weight_decay}.")

    @property
    def needs_gradient(self) -> bool:
        """Yes: autograd, and training mode (dropout as the model configures it)."""
        return True

    def init(self, params: Params) -> State:
        """Return the optimiser; torch allocates its buffers in the first step."""
        return self.optimizer(self.groups(params))

    def groups(self, params: Params) -> Groups:
        """Split the tensors into what decays and what does not; an empty group is left out."""
        whole = self.decay_group == "all" or self.weight_decay == 0
        groups: Groups = [
            {"params": [], "weight_decay": self.weight_decay},
            {"params": [], "weight_decay": 0.0},
        ]
        for param in params:
            groups[0 if whole or decays(param) else 1]["params"].append(param.tensor)
        return [group for group in groups if group["params"]]

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

        The gradient is accumulated over the objective's micro-batches, weighted by size.

        Raises:
            Unsupported: the objective has no gradient.
            NonFiniteLoss: the loss was NaN or infinite; theta is untouched, and the gradients
                are dropped.

        """
        if not objective.differentiable:
            raise Unsupported(
                "This objective is not differentiable; a first-order method can't use it. "
                "Use a zeroth-order method such as 'mezo'."
            )
        state.zero_grad(set_to_none=True)
        try:
            value = _accumulate(objective, span)
            with span("update"):
                for group in state.param_groups:
                    group["lr"] = lr
                state.step()
        finally:
            state.zero_grad(set_to_none=True)
        return state, StepInfo((value,), queries=1, backwards=1, lr=lr)

    def cost(self, params: Params) -> Cost:
        """One query, one backward; a gradient for every entry, beside the optimiser's buffers."""
        return Cost(
            queries=1,
            backwards=1,
            state_bytes=self.state_bytes(params),
            scratch_bytes=params.bytes + self.temporary_bytes(params),
        )


def _accumulate(objective: Objective, span: Span) -> float:
    """Add up the gradient in ``.grad``, part by part, and return the loss.

    Activations are of one part at a time: its graph is gone before the next part begins. Losses
    are looked at after the last backward pass: the host would wait for the device at each.
    """
    parts = objective.parts()
    total = sum(weight for weight, _ in parts)
    losses: list[Tensor] = []
    for weight, part in parts:
        with span("forward"):
            loss = part()
            if loss.numel() != 1:
                finite(loss)  # says what is wrong with it
            losses.append(loss.detach().view(()))
        with span("backward"):
            torch.autograd.backward([loss * (weight / total) if len(parts) > 1 else loss])
            del loss
    values = [finite(loss) for loss in torch.stack(losses).cpu()]
    return sum(v * weight / total for v, (weight, _) in zip(values, parts, strict=True))


def adamw(
    *, beta1: float, beta2: float, adam_eps: float, weight_decay: float, decay_group: str
) -> FirstOrder:
    """Return AdamW with two moments in the weights' dtype; see ``zo_core.methods.ft_adamw``."""
    check_betas(beta1, beta2)

    def make(groups: Groups) -> torch.optim.Optimizer:
        _refuse_lost_moments(groups, beta2, adam_eps)
        return torch.optim.AdamW(groups, lr=0.0, betas=(beta1, beta2), eps=adam_eps, fused=True)

    return FirstOrder(
        make,
        state_bytes=lambda params: 2 * params.bytes + 4 * len(params),  # and a float32 step count
        weight_decay=weight_decay,
        decay_group=decay_group,
    )


def check_betas(*betas: float) -> None:
    """Refuse a decay of a moment that is none."""
    for beta in betas:
        if not 0 <= beta < 1:
            raise ValueError(f"Expected betas of at least 0 and below 1, got {beta}.")


def _refuse_lost_moments(groups: Sequence[dict[str, Any]], beta2: float, adam_eps: float) -> None:
    """Refuse float16 states whose second moment vanishes where the first does not.

    (1 - b2) g^2 is rounded to zero below half of float16's smallest number, so for |g| below
    sqrt(2^-25 / (1 - b2)), 5.5e-3 at b2 = 0.999. There the step is g / adam_eps instead of about
    one, and with the usual adam_eps the run diverges. An adam_eps of that size bounds it by one.
    """
    smallest = math.sqrt(_HALF_STEP / (1 - beta2))
    half = any(p.dtype == torch.float16 for group in groups for p in group["params"])
    if half and adam_eps < smallest:
        raise Unsupported(
            f"AdamW keeps its states in the weights' dtype, and float16 loses second moments of "
            f"gradients below {smallest:.1e}: use bfloat16 or float32 weights, 'ft_adamw_8bit', "
            f"or adam_eps >= {smallest:.1e} (got {adam_eps})."
        )
