"""Perturb each module as it runs: theta is not written, so its bits stay.

A module runs with perturbed copies of its own weights (see ``elsewhere``), and a small part of
the model with those of all of its modules. So no more than the largest module's weights exist
twice (or 32 MiB of small ones), nothing is undone by arithmetic,
and copies are made of theta itself: a mask that hangs on it (Sparse-MeZO, arXiv 2402.15751,
section 3.4: "efficient implementation") is computed where it is used. Biases and norms are many
and small: copies of all of them are made at once, before the first module runs.

Parameters that belong to no module (plain tensors) are one block, which is saved, perturbed in
place, and put back.

What it costs in noise: a direction is drawn once for *each forward pass of a query* through the
module that holds the weights, so a minibatch or an anchor set of n micro-batches costs n noise
passes a point, and weights tied between m modules m times their share.

What it does not see: matrices are perturbed while a module that holds them runs, or the small
part of the model that it is in. Such as are used outside of it
(``functional.linear(x, embed.weight)`` in place of a tied head) are those of theta there; where
the module is never called that is refused, but where it is called as well, it can't be noticed.
Such a model needs ``restore='arithmetic'``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from zo_core.base import (
    Cost,
    Data,
    Look,
    Objective,
    Param,
    Params,
    Point,
    Span,
    finite,
    no_span,
)
from zo_core.perturbers.by_rows import Looks
from zo_core.perturbers.elsewhere import Elsewhere, Stand, room_bytes, room_for


@dataclass(frozen=True)
class InForward:
    """The exact perturber; scratch is copies of one module's weights, and of biases and norms.

    Weights used outside the forward pass of their own module are those of theta there; see above.
    """

    staying = None  # all of theta is never elsewhere

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
        with (
            room_for(params, look.distribution, ahead=True) as room,
            _Perturbed(params, room) as perturbed,
        ):
            for point in look.points:
                with perturbed.at(point), span("forward"), torch.inference_mode():
                    seen.append(finite(objective(look.data)))
                if point:
                    room.check()
        return seen

    def retrace_(self, params: Params, look: Look) -> None:
        """Do nothing: nothing is left behind."""

    def cost(self, params: Params, points: Sequence[Point], data: Data = "batch") -> Cost:
        """One query a point, one noise pass a term (of one forward pass); the copies."""
        passes = sum(len(point) for point in points)
        return Cost(len(points), noise_passes=passes, scratch_bytes=room_bytes(params, ahead=True))


class _Perturbed:
    """While it is open, modules can run perturbed to one point after another."""

    def __init__(self, params: Params, room: Elsewhere) -> None:
        self._params, self._room = params, room
        self._point: Point = ()
        # Of modules that run, the innermost last. A module may be entered from within itself.
        self._open: list[tuple[Sequence[Param], Stand | None]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> _Perturbed:
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    @contextmanager
    def at(self, point: Point) -> Iterator[None]:
        """Let modules run at a point."""
        self._point = point
        try:
            if point:
                self._begin()
            yield
        finally:  # why: whatever was raised, pointers go back
            while self._open:
                self._back_()

    def _begin(self) -> None:
        if not self._handles:
            self._hook()
        if self._params.module is None:
            self._enter(self._params)
        if self._room.ahead:
            self._enter(tuple(self._room.ahead.values()))

    def _hook(self) -> None:
        for module, group in self._room.groups.items():
            self._handles += [
                module.register_forward_pre_hook(partial(self._enter_group, group), prepend=True),
                module.register_forward_hook(partial(self._leave, group), always_call=True),
            ]
        for module, own in self._room.owners.items():
            if all(p.key in self._room.ahead for p in own):
                continue
            self._handles += [
                module.register_forward_pre_hook(partial(self._enter, own)),
                module.register_forward_hook(partial(self._leave, own), always_call=True),
            ]

    def _enter_group(self, group: Sequence[Param], *_: Any) -> None:
        if self._point:
            self._stand(group, self._room.stand(group, (self._point,), group=True))

    def _stand(self, own: Sequence[Param], stand: Stand) -> None:
        self._open.append((own, stand))
        stand.at_(0)

    def _enter(self, own: Sequence[Param], module: nn.Module | None = None, *_: Any) -> None:
        if not self._point:
            return
        self._room.runs(own)
        if self._room.are_away(own):  # with the part of the model around it
            self._open.append((own, None))
            return
        layer = self._room.layers.get(module) if module else None
        if layer:
            self._stand(own, self._room.lend(layer, Looks.at(self._point)))
        else:
            self._stand(own, self._room.stand(own, (self._point,)))

    def _leave(self, own: Sequence[Param], module: nn.Module, args: Any, output: Any) -> Any:
        entered = self._open and self._open[-1][0] is own  # else it never was: that raised
        if entered and self._open[-1][1] is None:  # whoever made the copies takes them apart
            self._back_()
            return output
        apart = self._room.apart(output)  # while what it returns is still perturbed
        if entered:
            self._back_()
        return apart

    def _back_(self) -> None:
        stand = self._open[-1][1]
        if stand:
            stand.back_()
        self._open.pop()  # last: an interrupt leaves it to __exit__
