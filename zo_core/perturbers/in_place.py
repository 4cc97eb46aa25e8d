"""Perturb the weights themselves: add, look, take back (MeZO, arXiv 2305.17333, Algorithm 1).

No second copy of anything: the direction is drawn again for every move. Moving from one point to
the next is one pass, so +eps, -eps and back costs three (the paper's +1, -2, +1).

What "back" means: in floating point (theta + a) - 2a + a is not theta. Of the entries about half
come back changed by one rounding, in any dtype; the drift of one estimate is at most
:data:`DRIFT_ULPS` units in the last place of the largest value an entry held on the way.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from zo_core.base import (
    Cost,
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
"""Three roundings of half a unit each."""


@dataclass(frozen=True)
class InPlace:
    """The perturber of the MeZO paper. Scratch: none beyond the noise kernel's."""

    @property
    def exact(self) -> bool:
        """No: see the drift above."""
        return False

    def losses(
        self, params: Params, objective: Objective, look: Look, span: Span = no_span
    ) -> list[float]:
        """Return the objective at each point; theta is left as found, up to the stated drift.

        Costs one query a point, and one noise pass a move (a point that is theta costs none).
        """
        here: Point = ()
        seen: list[float] = []
        try:
            for point in look.points:
                _move_(params, look.distribution, here, point, span)
                here = point
                with span("forward"), torch.inference_mode():
                    seen.append(finite(objective(look.data)))
        finally:
            _move_(params, look.distribution, here, (), span)
        return seen

    def retrace_(self, params: Params, look: Look) -> None:
        """Make the same moves, with the same roundings, without looking."""
        for here, there in itertools.pairwise([(), *look.points, ()]):
            _move_(params, look.distribution, here, there, no_span)

    def cost(self, params: Params, points: Sequence[Point]) -> Cost:
        """One query a point, and the noise passes of the moves between them."""
        moves = itertools.pairwise([(), *points, ()])
        return Cost(queries=len(points), noise_passes=sum(len(_terms(*m)) for m in moves))


def _terms(here: Point, there: Point) -> tuple[Term, ...]:
    return merge([*there, *scaled(here, -1.0)])


def _move_(
    params: Params, distribution: Distribution, here: Point, there: Point, span: Span
) -> None:
    terms = _terms(here, there)
    if terms:
        with span("perturb"):
            distribution.add_(params, terms)
