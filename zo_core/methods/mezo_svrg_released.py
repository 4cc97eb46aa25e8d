"""MeZO-SVRG as its released code runs it: the snapshot is the live weights, directions are two.

Gautam, Park, Zhou, Raman and Ha, ICML 2024, arXiv 2404.08080; ``amazon-science/mezo_svrg`` at
4a5e879c, ``training_step_MeZO_SVRG``. Every q steps, over the anchor set::

    G = c z,  c = [f(theta + eps z) - f(theta - eps z)] / (2 eps);   theta <- theta - eta_1 G

and between, on one minibatch, with two directions a and b::

    theta <- theta - eta_2 c(theta) a          c(x) the central difference at x along a, then b
    theta <- theta + eta_2 c(theta) b          at the theta that the line above has just moved
    theta <- theta - eta_2 G

The code means the second line to look at the snapshot, but its snapshot is a list of references to
the parameters that go on to move. So no variance is reduced: the two lines are two independent
estimates of nearly the same gradient with opposite signs, zero in the mean and twice the noise. It
is kept because the published figures were made by it; what the paper asks for is ``mezo_svrg``.

G is held in the dtype of the weights, and the new one is built while the old is alive.

Where we differ: (1) the noise stream and moves without temporaries, as in ``mezo``; (2) annealing
compares the losses that a step sees at theta +- eps z, where the code makes a forward pass more
(and times it); (3) its floor is a share of the rate, for the absolute 1e-5 and 1e-6.

>>> import torch
>>> from zo_core import Closure, Params, derive_seed, sample
>>> theta = torch.tensor([1.0, -2.0, 3.0])
>>> def full(t): return (t**4).sum()
>>> def batch(t): return (t**4).sum() + t[0] * t[1]
>>> p = theta.clone()
>>> params, svrg = Params([("w", p)]), method(eps=0.01, anchor_lr_ratio=10.0)
>>> closure = Closure(lambda: batch(p), lambda: full(p))
>>> state, _ = svrg.step_(params, closure, svrg.init(params), seed=7, lr=1e-4)
>>> def u(seed): return sample("gaussian", seed, params[0].key, 3)
>>> def c(f, x, z): return (f(x + 0.01 * z) - f(x - 0.01 * z)) / (2 * 0.01)
>>> G = c(full, theta, u(7)) * u(7)
>>> theta = theta - 1e-3 * G
>>> torch.allclose(p, theta, rtol=1e-4)
True
>>> state, _ = svrg.step_(params, closure, state, seed=8, lr=1e-4)
>>> a, b = u(derive_seed(8, "first")), u(derive_seed(8, "second"))
>>> theta = theta - 1e-4 * c(batch, theta, a) * a
>>> theta = theta + 1e-4 * c(batch, theta, b) * b - 1e-4 * G
>>> torch.allclose(p, theta, rtol=1e-4)
True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from zo_core import directions, noise
from zo_core.base import (
    Cost,
    Distribution,
    GradientEstimate,
    Look,
    Method,
    Objective,
    Param,
    Params,
    Plan,
    Replayable,
    Span,
    State,
    StepInfo,
    Term,
    derive_seed,
    no_span,
    scaled,
)
from zo_core.estimators.annealing import Annealed, Annealing
from zo_core.estimators.svrg import check_period
from zo_core.estimators.two_point import both_sides, central_difference, check_eps
from zo_core.structured.kept import Kept
from zo_core.zeroth_order import Settings, look

TITLE = "MeZO-SVRG (as released)"
PAPER = "arXiv 2404.08080, the code of amazon-science/mezo_svrg"
BIAS = "between anchors, the gradient where the anchor was: the corrections cancel in the mean"
DIFFERS = "from the code: the noise stream, no temporaries, no forward pass for the annealing"

See = Callable[[Look], Term]
"""Looks at both sides of theta; returns the (clipped) estimate along the look's direction."""


@dataclass(frozen=True)
class ReleasedState:
    """What is kept between steps."""

    steps: int = 0
    anchor: Kept | None = None  # holds G as the direction of its seed
    annealed: Annealed = field(default_factory=Annealed)


@dataclass(frozen=True)
class ReleasedSvrg(Replayable):
    """The method. Not a ``ZerothOrder``: it moves theta in the middle of a step."""

    eps: float
    distribution: Distribution
    period: int
    anchor_lr_ratio: float
    annealing: Annealing
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        """Refuse what can't be."""
        check_eps(self.eps)
        check_period(self.period, self.anchor_lr_ratio)

    @property
    def needs_gradient(self) -> bool:
        """No."""
        return False

    def configured(self, **options: Any) -> Method:
        """Return the method with other settings."""
        return replace(self, settings=replace(self.settings, **options))

    def init(self, params: Params) -> State:
        """Return the state before the first anchor, which makes G."""
        return ReleasedState()

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
        """Take one step. Theta is as found (up to drift) on an error, in the second half too."""
        losses: list[float] = []

        def see(one: Look) -> Term:
            plan = Plan(self.distribution, (one,))
            pair = look(self.settings.perturber, params, objective, plan, span)
            losses.extend(pair)
            term = Term(one.points[0][0].seed, central_difference(pair, self.eps))
            return self.settings.clipped(GradientEstimate(self.distribution, (term,))).terms[0]

        rate = lr * state.annealed.factor
        rate *= self.anchor_lr_ratio if self._drops(state) else 1.0
        terms, anchor = self._move_(params, state, seed, rate, see, span)
        extra = self.annealing.told(losses[:2])
        estimate = GradientEstimate(self.distribution, terms, tuple(losses), extra)
        info = StepInfo(estimate.losses, len(losses), estimate=estimate, lr=rate)
        return self._after(state, anchor, extra), info

    def replay_(
        self,
        params: Params,
        terms: Sequence[Term],
        state: State,
        *,
        seed: int,
        lr: float,
        extra: Sequence[float] = (),
        retrace: bool = False,
    ) -> State:
        """Take the step again; see ``ZerothOrder.replay_``."""
        told = iter(terms if self._drops(state) else (terms[0], *scaled(terms[1:], -1.0)))

        def see(one: Look) -> Term:
            if retrace:
                with torch.no_grad():
                    self.settings.perturber.retrace_(params, one)
            return next(told)

        _, anchor = self._move_(params, state, seed, lr, see, no_span)
        return self._after(state, anchor, extra)

    def cost(self, params: Params) -> Cost:
        """Four queries (two where every step is an anchor); G is kept, and a second one built."""
        side = self.settings.perturber.cost(params, both_sides(0, self.eps))
        anchor = self.settings.perturber.cost(params, both_sides(0, self.eps), "anchor")
        looks = side + side if self.period > 1 else anchor
        pieces = noise.piece_bytes(params, 3)
        kernel = noise.scratch_bytes(params) + self.settings.scratch_bytes(params)
        scratch = max(params.bytes, side.scratch_bytes) + pieces + kernel
        # One pass beside each pair of looks; G is read.
        moves = Cost(noise_passes=2 if self.period > 1 else 1, state_bytes=params.bytes)
        return replace(looks + moves, scratch_bytes=scratch)

    def _drops(self, state: ReleasedState) -> bool:
        return state.steps % self.period == 0

    def _after(self, state: ReleasedState, anchor: Kept, extra: Sequence[float]) -> ReleasedState:
        annealed = self.annealing.after(state.annealed, extra)
        return ReleasedState(state.steps + 1, anchor, annealed)

    def _move_(
        self, params: Params, state: ReleasedState, seed: int, rate: float, see: See, span: Span
    ) -> tuple[tuple[Term, ...], Kept]:
        """Take the step whose looks ``see`` answers; return the terms to log, and G."""
        if self._drops(state):
            term = see(Look(self.distribution, both_sides(seed, self.eps), "anchor"))
            with span("update"), torch.no_grad():
                new = Kept(self.distribution, seed, self._gradient(params, term))
                self._apply_(params, new, [Term(seed, -rate)], seed, rate)
            return (term,), new
        anchor = state.anchor
        assert anchor is not None, "the first step is an anchor"
        first = see(self._look(seed, "first"))
        with span("update"), torch.no_grad():
            step = scaled([first], -rate)
            self._apply_(params, self.distribution, step, derive_seed(seed, "first"), 0.0)
        try:
            second = see(self._look(seed, "second"))
        except BaseException:  # why: whatever was raised, theta goes back to where it was found
            self.distribution.add_(params, scaled(step, -1.0))
            raise
        with span("update"), torch.no_grad():
            back = scaled([second], rate)
            self._apply_(params, self.distribution, back, derive_seed(seed, "second"), 0.0)
            self._apply_(params, anchor, [Term(anchor.seed, -rate)], seed, rate)
        return (first, *scaled([second], -1.0)), anchor

    def _look(self, seed: int, which: str) -> Look:
        return Look(self.distribution, both_sides(derive_seed(seed, which), self.eps))

    def _gradient(self, params: Params, term: Term) -> Mapping[int, Tensor]:
        dense = {p.key: torch.zeros_like(p.tensor.detach()).contiguous() for p in params}
        self.distribution.add_([Param(p.name, dense[p.key], p.key) for p in params], (term,))
        return dense

    def _apply_(
        self, params: Params, along: Distribution, terms: Sequence[Term], seed: int, rate: float
    ) -> None:
        """Write one of the moves; ``rate`` is what weights decay with (once a step)."""
        self.settings.writer(seed, rate).terms_(params, along, terms)


def method(
    *,
    eps: float = 1e-3,
    period: int = 2,
    anchor_lr_ratio: float = 10.0,
    anneal: float = 0.0,
    anneal_every: int = 8,
    anneal_floor: float = 0.1,
    distribution: str = "gaussian",
) -> Method:
    """Return MeZO-SVRG as released.

    Args:
        eps: perturbation scale; 1e-3 in the released scripts.
        period: steps from anchor to anchor, q; 2 in the released scripts.
        anchor_lr_ratio: eta_1 / eta_2, as for ``mezo_svrg``.
        anneal: divides both rates when the loss has risen; 3, 4 or 5 in the grids, 0 is off.
        anneal_every: steps of a window, an epoch's; 8 in the released scripts.
        anneal_floor: the smallest factor that annealing leaves.
        distribution: of the directions; "gaussian" as in the code.

    """
    annealing = Annealing(anneal, anneal_every, anneal_floor)
    along = directions.build(distribution)
    return ReleasedSvrg(eps, along, period, anchor_lr_ratio, annealing)
