"""Zeroth-order methods in anybody's own loop, with the manners of ``torch.optim``.

>>> import torch
>>> from zo_core import ZOOptimizer
>>> _ = torch.manual_seed(0)
>>> model = torch.nn.Linear(4, 1)
>>> x = torch.randn(64, 4)
>>> y = x @ torch.tensor([[1.0], [2.0], [3.0], [4.0]])
>>> optimizer = ZOOptimizer(model, method="mezo", lr=0.02, eps=1e-3, seed=0)
>>> def closure():
...     return torch.nn.functional.mse_loss(model(x), y)
>>> first = optimizer.step(closure)
>>> for _ in range(300):
...     last = optimizer.step(closure)
>>> last < 0.05 * first
True
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from zo_core import methods
from zo_core.base import Closure, Params, StepInfo, derive_seed


class ZOOptimizer(torch.optim.Optimizer):
    """A zeroth-order method as an optimiser; learning-rate schedulers of torch work on it.

    The closure takes no arguments, must not call ``backward``, and returns the loss of this step's
    minibatch, shape (). It is called more than once a step, so the minibatch is chosen outside
    it, and the module should be in ``eval()`` mode (with dropout each call is another function).

    Args:
        params: a module (its parameters that require a gradient are trained), or (name, tensor)
            pairs, or tensors, which are then known by their position. Frozen parameters stay out.
        method: a name of ``zo_core.methods`` that needs no gradient.
        lr: learning rate.
        seed: decides every direction.
        options: the method's own settings, such as ``eps``.

    Raises:
        ValueError: unknown method or option, a first-order method, or nothing to train.

    """

    def __init__(
        self,
        params: torch.nn.Module | Iterable[Tensor] | Iterable[tuple[str, Tensor]],
        method: str = "mezo",
        *,
        lr: float,
        seed: int = 0,
        **options: Any,
    ) -> None:
        """Build the method; nothing is allocated that it does not declare."""
        self._params = _named(params)
        self._method = methods.build(method, **options)
        if self._method.needs_gradient:
            raise ValueError(
                f"'{method}' needs gradients; use torch.optim for first-order methods."
            )
        super().__init__(self._params.tensors, {"lr": lr, "seed": seed, "taken": 0})
        self._state = self._method.init(self._params)
        self.last: StepInfo | None = None

    def step(self, closure: Callable[[], Tensor]) -> float:  # type: ignore[override]  # why: required here
        """Take one step and return the first loss seen: at theta + eps z for two-point methods.

        Raises:
            NonFiniteLoss: a loss was NaN or infinite; theta is as it was before the step.

        """
        (group,) = self.param_groups
        self._state, self.last = self._method.step_(
            self._params,
            Closure(closure),
            self._state,
            seed=derive_seed(group["seed"], group["taken"]),
            lr=float(group["lr"]),
        )
        group["taken"] += 1
        return self.last.losses[0]

    def state_dict(self) -> dict[str, Any]:
        """Return what a run resumes from: rates, seeds, steps taken, and the method's state."""
        return {**super().state_dict(), "method_state": copy.deepcopy(self._state)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state saved by ``state_dict``, for the same method and parameters."""
        rest = dict(state_dict)
        self._state = copy.deepcopy(rest.pop("method_state"))
        super().load_state_dict(rest)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: there are no gradients. Here so that an existing loop runs unchanged."""


def _frozen(item: Any) -> bool:
    """Tell a frozen parameter of a module; a plain tensor is trained whatever its flag."""
    tensor = item[1] if isinstance(item, tuple) else item
    return isinstance(tensor, torch.nn.Parameter) and not tensor.requires_grad


def _named(params: Any) -> Params:
    if isinstance(params, torch.nn.Module):
        return Params.of(params)
    items = [item for item in params if not _frozen(item)]
    if items and isinstance(items[0], dict):
        raise ValueError(
            "Expected a module, tensors or (name, tensor) pairs; got parameter groups."
        )
    if items and isinstance(items[0], Tensor):
        return Params((str(i), t) for i, t in enumerate(items))
    return Params(items)
