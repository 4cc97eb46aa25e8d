"""Perturb each module as it runs: theta comes back to the same bits.

A module's own weights are saved, perturbed while its forward pass runs, and put back from what was
saved. So no more than the largest module's weights exist twice, nothing is undone by arithmetic,
and at any time all other weights are those of theta: a mask that hangs on them (Sparse-MeZO,
arXiv 2402.15751, section 3.4: "efficient implementation") can be computed where it is used.

Parameters that belong to no module (plain tensors) are one block, and are saved whole.

What it costs in noise: a direction is drawn once for *each forward pass of a query* through the
module that holds the weights, so a minibatch or an anchor set of n micro-batches costs n noise
passes a point, and weights tied between m modules m times their share.

What it does not see: weights are perturbed while a module that holds them runs. Weights that are
used outside of it (``functional.linear(x, embed.weight)`` in place of a tied head) are those of
theta there; where the module is never called that is refused, but where it is called as well, it
can't be noticed. Such a model needs ``restore='arithmetic'``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zo_core.base import (
    Cost,
    Look,
    Objective,
    Param,
    Params,
    Point,
    Span,
    finite,
    no_span,
)


@dataclass(frozen=True)
class InForward:
    """The exact perturber. Scratch: the weights of the largest module, and of those around it.

    Weights used outside the forward pass of their own module are those of theta there; see above.
    """

    @property
    def exact(self) -> bool:
        """Yes."""
        return True

    def losses(
        self, params: Params, objective: Objective, look: Look, span: Span = no_span
    ) -> list[float]:
        """Return the objective at each point; theta is left as found, bit for bit.

        Costs one query a point, and one noise pass a point for each forward pass of the query
        (micro-batches, anchor sets; tied weights: each time they are used). The perturbation is
        part of the phase ``forward``: it happens inside it.

        Raises:
            ValueError: some trained tensor is not used in the forward pass of the module it
                belongs to, so it would have been left out.

        """
        seen: list[float] = []
        for point in look.points:
            if not point:
                with span("forward"), torch.inference_mode():
                    seen.append(finite(objective(look.data)))
                continue
            with Perturbed(params, look, point) as perturbed:
                with span("forward"), torch.inference_mode():
                    seen.append(finite(objective(look.data)))
                perturbed.check()
        return seen

    def retrace_(self, params: Params, look: Look) -> None:
        """Do nothing: nothing is left behind."""

    def cost(self, params: Params, points: Sequence[Point]) -> Cost:
        """One query a point, one noise pass a term (of one forward pass); saved weights."""
        passes = sum(len(point) for point in points)
        return Cost(len(points), noise_passes=passes, scratch_bytes=saved_bytes(params))


def owners(params: Params) -> dict[nn.Module, tuple[Param, ...]]:
    """Return the modules that hold trained tensors directly, and which (tied ones: each time)."""
    if params.module is None:
        return {}
    by_tensor = {id(p.tensor): p for p in params}
    found: dict[nn.Module, tuple[Param, ...]] = {}
    for module in params.module.modules():
        own = [by_tensor[id(t)] for t in module._parameters.values() if id(t) in by_tensor]
        if own:
            found[module] = tuple(own)
    return found


def saved_bytes(params: Params) -> int:
    """Return the most that is saved at a time: the weights of a module and of those around it."""
    if params.module is None:
        return params.bytes
    own = owners(params)

    def deepest(module: nn.Module) -> int:
        below = max(map(deepest, module.children()), default=0)
        return below + sum(p.tensor.nbytes for p in own.get(module, ()))

    return deepest(params.module)


class Perturbed:
    """While it is open, modules run perturbed; or weights are, between two calls."""

    def __init__(self, params: Params, look: Look, point: Point) -> None:
        """Perturb to ``point`` along the distribution of ``look``."""
        self._params, self._look, self._point = params, look, point
        self._saved: dict[int, tuple[Param, Tensor]] = {}  # by id of the tensor, while perturbed
        self._touched: set[int] = set()
        self._handles: list[Any] = []

    def __enter__(self) -> Perturbed:
        """Watch the modules; perturb what belongs to none."""
        if self._params.module is None:
            self.perturb_(self._params)
        for module, own in owners(self._params).items():
            stack: list[list[Param]] = []  # a module may be entered again from within itself
            before, after = partial(self._enter, own, stack), partial(self._leave, stack)
            self._handles += [
                module.register_forward_pre_hook(before),
                module.register_forward_hook(after, always_call=True),
            ]
        return self

    def __exit__(self, *error: object) -> None:
        """Put back everything, whatever happened."""
        for handle in self._handles:
            handle.remove()
        self.restore_([p for p, _ in self._saved.values()])

    def check(self) -> None:
        """Refuse to have left a tensor out."""
        for param in self._params:
            if id(param.tensor) not in self._touched:
                raise ValueError(
                    "restore='exact' and 'batched' perturb every module while it runs, and "
                    f"'{param.name}' is not used in the forward pass of its module. Freeze it, "
                    "or use restore='arithmetic'."
                )

    def _enter(self, own: Sequence[Param], stack: list[list[Param]], *_: Any) -> None:
        stack.append(self.perturb_(own))

    def _leave(self, stack: list[list[Param]], *_: Any) -> None:
        self.restore_(stack.pop())

    def perturb_(self, params: Sequence[Param]) -> list[Param]:
        """Save and perturb those of ``params`` that are not; return which."""
        mine = [p for p in params if id(p.tensor) not in self._saved]
        with torch.no_grad():
            for p in mine:
                self._saved[id(p.tensor)] = p, p.tensor.detach().clone()
                self._touched.add(id(p.tensor))
            self._look.distribution.add_(mine, self._point)
        return mine

    def restore_(self, params: Sequence[Param]) -> None:
        """Put back what was saved, bit for bit."""
        with torch.no_grad():
            for p in params:
                _, clean = self._saved.pop(id(p.tensor))
                p.tensor.detach().copy_(clean)
