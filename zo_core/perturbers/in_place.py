"""Perturb the weights themselves: add, look, take back (MeZO, arXiv 2305.17333, Algorithm 1).

No second copy of anything: the direction is drawn again for every move. Moving from one point to
the next is one pass, so +eps, -eps and back costs three (the paper's +1, -2, +1). The last of them
can be left to the update, which goes by the same directions: see ``InPlace.stays``.

What "back" means: in floating point (theta + a) - 2a + a is not theta. Of the entries about half
come back changed by one rounding, in any dtype; the drift of one estimate is at most
:data:`DRIFT_ULPS` units in the last place of the largest value an entry held on the way.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from zo_core.base import (
    Cost,
    Data,
    Distribution,
    Look,
    Objective,
    Params,
    Point,
    Span,
    Term,
    finite,
    merge,
    no_span,
    scaled,
)

DRIFT_ULPS = 1.5
"""Three roundings of half a unit each; of a step whose update takes theta back, two of them, and
the third is the update's own."""


@dataclass(frozen=True)
class InPlace:
    """The perturber of the MeZO paper. Scratch: none beyond the noise kernel's."""

    stays: bool = False
    """Whether theta is left at a look's last point, for an update to take it back."""

    @property
    def exact(self) -> bool:
        """No: see the drift above."""
        return False

    @property
    def staying(self) -> InPlace:
        """Return the same, with ``stays``."""
        return replace(self, stays=True)

    def losses(
        self, params: Params, objective: Objective, look: Look, span: Span = no_span
    ) -> list[float]:
        """Return the objective at each point; theta is left as found, up to the stated drift.

        With ``stays`` it is left at the last point, unless something was raised. Costs one query a
        point, and one noise pass a move (a point that is theta costs none). A loss that is not
        finite is raised when all points were looked at: the device is waited for once.
        """
        here: Point = ()
        end: Point = ()
        seen: list[Tensor] = []
        try:
            for point in look.points:
                _move_(params, look.distribution, here, point, span)
                here = point
                with span("forward"), torch.inference_mode():
                    # A copy: the next call may write its loss to the same place.
                    seen.append(objective(look.data).clone())
            losses = [finite(loss) for loss in seen]
            end = here if self.stays else ()
        finally:
            _move_(params, look.distribution, here, end, span)
        return losses

    def retrace_(self, params: Params, look: Look) -> None:
        """Make the same moves, with the same roundings, without looking."""
        for here, there in self._moves(look.points):
            _move_(params, look.distribution, here, there, no_span)

    def cost(self, params: Params, points: Sequence[Point], data: Data = "batch") -> Cost:
        """One query a point, and the noise passes of the moves between them."""
        passes = sum(len(_terms(*move)) for move in self._moves(points))
        return Cost(queries=len(points), noise_passes=passes)

    def _moves(self, points: Sequence[Point]) -> itertools.pairwise[tuple[Point, Point]]:
        return itertools.pairwise([(), *points] if self.stays else [(), *points, ()])


def _terms(here: Point, there: Point) -> tuple[Term, ...]:
    return merge([*there, *scaled(here, -1.0)])


def _move_(
    params: Params, distribution: Distribution, here: Point, there: Point, span: Span
) -> None:
    terms = _terms(here, there)
    if terms:
        with span("perturb"):
            distribution.add_(params, terms)
