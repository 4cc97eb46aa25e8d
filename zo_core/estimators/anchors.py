"""Where the anchor of SVRG stands while theta goes on: walked back to, or copied.

An anchor is a place theta_ref and the estimate g_ref = c_0 z_0 that was made there. Both ways
look at the same four points, in an order in which equal places give equal bits: where theta is
theta_ref, the two differences are equal, and what is left of the estimate is g_ref exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from zo_core import noise
from zo_core.base import (
    Cost,
    Distribution,
    Look,
    Moved,
    Param,
    Params,
    Perturber,
    Point,
    State,
    Term,
    merge,
    scaled,
)
from zo_core.estimators.two_point import both_sides
from zo_core.structured.kept import Kept


class Anchor(Protocol):
    """A way to keep theta_ref and g_ref."""

    order: tuple[int, int, int, int]
    """Where, among the losses of ``looks``, those at theta + eps u, theta - eps u, and at
    theta_ref + eps u, theta_ref - eps u stand."""

    @property
    def walks_back(self) -> bool:
        """Whether it must be told of every move as terms."""
        ...

    @property
    def needs_theta_back(self) -> bool:
        """Whether it reads theta to be dropped, or looks from elsewhere last."""
        ...

    def init(self, params: Params) -> State:
        """Return the state before there is an anchor."""
        ...

    def drop(self, params: Params, base: Distribution, term: Term, state: State) -> State:
        """Return the state of an anchor at theta as it stands, with g_ref along ``term``."""
        ...

    def along(self, base: Distribution, state: State) -> Distribution:
        """Return the distribution whose direction of the anchor's seed is z_0."""
        ...

    def looks(self, base: Distribution, seed: int, eps: float, state: State) -> tuple[Look, ...]:
        """Return how to see the four points."""
        ...

    def moved(self, state: State, by: Moved) -> State:
        """Return the state after theta moved."""
        ...

    def cost(self, params: Params, perturber: Perturber, eps: float, period: int) -> Cost:
        """Declare what is kept, and the dearest step of a period.

        That is its last one, or the anchor where the period is 1. An update's one noise pass is
        the rule's to declare; a second one, for g_ref, is ours.
        """
        ...


@dataclass(frozen=True)
class WalkedBack(Anchor):
    """Keeps the moves since the anchor as (seed, coefficient), at most ``period`` of them.

    theta_ref is theta minus the moves, up to rounding: of updates and of the walk, one each. In 16
    bits most updates are smaller than a rounding, and theta_ref is off by what was rounded away.
    """

    order = (0, 3, 1, 2)

    @property
    def walks_back(self) -> bool:
        """Yes."""
        return True

    @property
    def needs_theta_back(self) -> bool:
        """No: theta_ref is theta minus what updates are told to have moved it by."""
        return False

    def init(self, params: Params) -> State:
        """No move was made."""
        return ()

    def drop(self, params: Params, base: Distribution, term: Term, state: State) -> State:
        """Forget the moves."""
        return ()

    def along(self, base: Distribution, state: State) -> Distribution:
        """Return the base: z_0 is drawn again from its seed."""
        return base

    def looks(self, base: Distribution, seed: int, eps: float, state: State) -> tuple[Look, ...]:
        """Walk back at + eps u and forth at - eps u; five moves in place, as at each place alone.

        Where nothing moved, the walks are no moves at all.
        """
        return (Look(base, _there_and_back(seed, eps, state)),)

    def moved(self, state: State, by: Moved) -> State:
        """Add to the moves."""
        assert by is not None, "ZerothOrder refuses updates that do not tell"
        return merge((*state, *by))

    def cost(self, params: Params, perturber: Perturber, eps: float, period: int) -> Cost:
        """Keep a few numbers; noise passes grow with the moves: those of ``period`` - 1 steps."""
        if period == 1:
            return perturber.cost(params, both_sides(0, eps), "anchor")
        moves = tuple(Term(-n, 1.0) for n in range(1, period))
        looks = perturber.cost(params, _there_and_back(0, eps, moves))
        return looks + Cost(noise_passes=1)


@dataclass(frozen=True)
class Copied(Anchor):
    """Keeps theta_ref and z_0 as tensors in the dtype of the weights (g_ref is c_0 z_0).

    theta_ref changes places with theta to be looked at, so nothing is copied a third time.
    """

    order = (0, 1, 2, 3)

    @property
    def walks_back(self) -> bool:
        """No."""
        return False

    @property
    def needs_theta_back(self) -> bool:
        """Yes: theta is copied, and the last look is from the copy."""
        return True

    def init(self, params: Params) -> State:
        """Make room for both."""
        return Copy(tuple(map(_like, params)), tuple(map(_like, params)))

    def drop(self, params: Params, base: Distribution, term: Term, state: State) -> State:
        """Copy theta, and draw z_0, into the room there is."""
        for param, place, direction in zip(params, state.place, state.direction, strict=True):
            place.copy_(param.tensor.detach())
            direction.zero_()
            base.add_((Param(param.name, direction, param.key),), (Term(term.seed, 1.0),))
        keys = (p.key for p in params)
        return Copy(
            state.place,
            state.direction,
            term.seed,
            dict(zip(keys, state.direction, strict=True)),
        )

    def along(self, base: Distribution, state: State) -> Distribution:
        """Return the base, with z_0 read instead of drawn."""
        return Kept(base, state.seed, state.by_key)

    def looks(self, base: Distribution, seed: int, eps: float, state: State) -> tuple[Look, ...]:
        """Look at both sides of theta, then of theta_ref."""
        points = both_sides(seed, eps)
        return Look(base, points), Look(base, points, at=state.place)

    def moved(self, state: State, by: Moved) -> State:
        """The copy stays."""
        return state

    def cost(self, params: Params, perturber: Perturber, eps: float, period: int) -> Cost:
        """Keep two copies of the weights; scratch is two pieces."""
        side = perturber.cost(params, both_sides(0, eps))
        drops = perturber.cost(params, both_sides(0, eps), "anchor") + Cost(noise_passes=1)
        step = side + side if period > 1 else drops
        pieces = noise.piece_bytes(params, 3)
        return replace(
            step,
            noise_passes=max(step.noise_passes, drops.noise_passes),
            state_bytes=2 * params.bytes,
            scratch_bytes=step.scratch_bytes + pieces,
        )


@dataclass(frozen=True, eq=False)
class Copy:
    """The state of a copied anchor."""

    place: tuple[Tensor, ...]  # theta_ref
    direction: tuple[Tensor, ...]  # z_0
    seed: int = 0
    by_key: Mapping[int, Tensor] | None = None  # the direction again


def _there_and_back(seed: int, eps: float, moves: Sequence[Term]) -> tuple[Point, ...]:
    plus, minus = both_sides(seed, eps)
    back = scaled(moves, -1.0)
    return plus, (*back, *plus), (*back, *minus), minus


def _like(param: Param) -> Tensor:
    return torch.empty(param.tensor.shape, dtype=param.tensor.dtype, device=param.tensor.device)
