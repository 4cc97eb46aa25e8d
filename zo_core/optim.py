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
import importlib
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any, cast

import torch
from torch import Tensor

from zo_core import methods
from zo_core.base import Closure, Params, StepInfo, derive_seed


class ZOOptimizer(torch.optim.Optimizer):
    """A zeroth-order method as an optimiser; learning-rate schedulers of torch work on it.

    The closure takes no arguments, must not call ``backward``, and returns the loss of this step's
    minibatch, shape (). It is called more than once a step, so the minibatch is chosen outside
    it, and the module should be in ``eval()`` mode (with dropout each call is another function).
    Methods that look at an anchor set or tile the minibatch are given a :class:`Closure`, which
    offers both: ``optimizer.step(Closure(loss, anchor, tiled=tiled))``.

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
        self._whole = False
        super().__init__(self._params.tensors, {"lr": lr, "seed": seed, "taken": 0})
        self._whole = True
        self._state = self._method.init(self._params)
        self.last: StepInfo | None = None

    def step(self, closure: Callable[[], Tensor] | Closure) -> float:  # type: ignore[override]  # why: required here
        """Take one step and return the first loss seen: at theta + eps z for two-point methods.

        Raises:
            NonFiniteLoss: a loss was NaN or infinite; theta is as it was before the step (to the
                bit with restore = 'exact', else up to rounding).
            ValueError: the method asks for an anchor set or tiled minibatches that ``closure``
                does not offer.

        """
        (group,) = self.param_groups
        objective = closure if isinstance(closure, Closure) else Closure(closure)
        self._state, self.last = self._method.step_(
            self._params,
            objective,
            self._state,
            seed=derive_seed(group["seed"], group["taken"]),
            lr=float(group["lr"]),
        )
        group["taken"] += 1
        return self.last.losses[0]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse: parameters are fixed when the optimiser is made, as their state is.

        Raises:
            ValueError: always, once the optimiser is made.

        """
        if self._whole:
            raise ValueError(
                "ZOOptimizer holds one group, fixed when it is made: make a new one with all "
                "parameters to train."
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return what a run resumes from: rates, seeds, steps taken, and the method's state.

        Plain containers, numbers and tensors, so ``torch.load`` takes it with its safe default.
        """
        return {**super().state_dict(), "method_state": copy.deepcopy(_plain(self._state))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state saved by ``state_dict``, for the same method and parameters."""
        rest = dict(state_dict)
        self._state = _lively(copy.deepcopy(rest.pop("method_state")))
        super().load_state_dict(rest)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Do nothing: there are no gradients. Here so that an existing loop runs unchanged."""


_CLASS = "zo_core class"


def _plain(state: Any) -> Any:
    """Write the dataclasses in ``state`` as dictionaries; tensors are the same ones."""
    if is_dataclass(state):
        kind = type(state)
        told = {f.name: _plain(getattr(state, f.name)) for f in fields(state)}
        return {_CLASS: f"{kind.__module__}:{kind.__qualname__}", **told}
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    if isinstance(state, tuple | list):
        return type(state)(map(_plain, state))
    return state


def _lively(state: Any) -> Any:
    """Undo ``_plain``. A file can name classes of ours alone."""
    if isinstance(state, dict) and _CLASS in state:
        module, _, name = state[_CLASS].partition(":")
        found = getattr(importlib.import_module(module), name) if _ours(module) else None
        if not (isinstance(found, type) and is_dataclass(found)):
            raise ValueError(
                f"'{module}:{name}' is no state of zo_core; is this file a state_dict?"
            )
        told = {key: _lively(value) for key, value in state.items() if key != _CLASS}
        return cast(Callable[..., Any], found)(**told)
    if isinstance(state, dict):
        return {key: _lively(value) for key, value in state.items()}
    if isinstance(state, tuple | list):
        return type(state)(map(_lively, state))
    return state


def _ours(module: str) -> bool:
    return module.split(".")[0] == "zo_core"


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
