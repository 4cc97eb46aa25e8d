"""A zeroth-order method: an estimator, an update rule, and how weights are moved and written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from zo_core import noise
from zo_core.base import (
    Away,
    Cost,
    Estimator,
    GradientEstimate,
    Look,
    Method,
    Objective,
    Params,
    Perturber,
    Plan,
    Span,
    State,
    StepInfo,
    Term,
    UpdateRule,
    float32,
    no_span,
    scaled,
)
from zo_core.perturbers.batched import Batched
from zo_core.perturbers.in_forward import InForward
from zo_core.perturbers.in_place import InPlace
from zo_core.perturbers.standing_at import standing_at
from zo_core.register import pick
from zo_core.writing import Writer

PERTURBERS: dict[str, Perturber] = {
    "arithmetic": InPlace(),
    "exact": InForward(),
    "batched": Batched(),
}
"""By ``restore``: how theta comes back after it was perturbed."""


_WRITTEN = 8
"""Wide numbers an entry that are alive at most while a piece is written."""


@dataclass(frozen=True)
class Settings:
    """What every zeroth-order method can be told beside its own options.

    Args:
        restore: "arithmetic" undoes a perturbation by adding its opposite (the textbook form;
            drifts by a rounding or two), the last time together with the update, in one pass and
            one rounding, where the update is a plain sum of directions; "exact" runs
            each module with perturbed copies of its weights, and draws a direction again for each
            forward pass of a query (micro-batches, anchor sets, tied weights); "batched" is
            exact, and evaluates all points of a look in one pass.
        rounding: of updates to 16-bit weights: "nearest", or "stochastic".
        weight_decay: decoupled; theta loses lr * weight_decay of itself a step, with lr as scaled
            in that step (by SVRG's anchor steps and annealing, and by scale_lr of n-SPSA).
        decay_group: "matrices" leaves biases and norms alone; "all" does not.
        clip: largest magnitude of an estimate's coefficients; 0 clips nothing. That is the
            projected gradient c of a direction, as it multiplies it: in FZOO the loss difference
            over N sigma; in MEAZO c over its root mean square; in ``mezo_block`` with unbiased =
            true c times the number of blocks over those of a step.

    """

    restore: str = "arithmetic"
    rounding: str = "nearest"
    weight_decay: float = 0.0
    decay_group: str = "matrices"
    clip: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values that are not there."""
        pick("restore", self.restore, PERTURBERS)
        pick("rounding", self.rounding, ("nearest", "stochastic"))
        pick("decay_group", self.decay_group, ("matrices", "all"))
        if not (0 <= self.weight_decay < math.inf and 0 <= self.clip < math.inf):
            raise ValueError(
                "weight_decay and clip must be finite and 0 or more, got "
                f"{self.weight_decay}, {self.clip}."
            )

    @property
    def perturber(self) -> Perturber:
        """The perturber of ``restore``."""
        return PERTURBERS[self.restore]

    @property
    def plain(self) -> bool:
        """Whether an update is rounded to nearest, and nothing decays."""
        return self.rounding == "nearest" and not self.weight_decay

    def writer(self, seed: int, lr: float, away: Away | None = None) -> Writer:
        """Return what writes the step of ``seed``, and takes theta back if it is ``away``."""
        return Writer(seed, self.rounding, lr * self.weight_decay, self.decay_group, away)  # type: ignore[arg-type]  # why: picked above

    def scratch_bytes(self, params: Params) -> int:
        """Bound what writing allocates beside the kernel's own scratch: pieces, or nothing."""
        return 0 if self.plain else noise.piece_bytes(params, _WRITTEN)

    def clipped(self, estimate: GradientEstimate) -> GradientEstimate:
        """Clip every coefficient to [-clip, clip] (in float32, as it is logged)."""
        if not self.clip:
            return estimate
        bound = float32(self.clip)
        terms = [Term(t.seed, max(-bound, min(bound, t.coefficient))) for t in estimate.terms]
        return replace(estimate, terms=tuple(terms))


@dataclass(frozen=True)
class ZerothOrder(Method):
    """The composition that most zeroth-order papers are; state is a pair, one for each part."""

    estimator: Estimator
    update: UpdateRule
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        """Refuse to walk back where moves can't be told."""
        told = self.update.linear and not self.settings.weight_decay
        if self.estimator.walks_back and not told:
            raise ValueError(
                "This method walks back along its updates, so they must be sums of directions: "
                "set weight_decay = 0, or storage = 'dense' where it is offered."
            )
        if self.estimator.reads_weights and not self.settings.perturber.exact:
            raise ValueError(
                "storage = 'in_forward' computes the mask from unperturbed weights where it is "
                f"used, which restore = '{self.settings.restore}' overwrites: use restore = "
                "'exact', or storage = 'packed'."
            )
        if self.estimator.freezes_entries and self.settings.weight_decay:
            raise ValueError(
                "This method leaves frozen entries as they are, bit for bit, and weight decay "
                "would move them: set weight_decay = 0."
            )

    @property
    def needs_gradient(self) -> bool:
        """No: the objective is run forward only, in evaluation mode."""
        return False

    @property
    def merges(self) -> bool:
        """Whether a step's update takes theta back from its last look as well, in one pass.

        Then theta + eps z - 2 eps z + (eps - lr c) z is three passes and three roundings, where
        putting theta back first makes four. The plain kernel alone does it.
        """
        return (
            self.settings.perturber.staying is not None
            and self.settings.plain
            and self.update.in_terms
            and not self.estimator.needs_theta_back
        )

    def configured(self, **options: Any) -> ZerothOrder:
        """Return the method with other settings."""
        return replace(self, settings=replace(self.settings, **options))

    def init(self, params: Params) -> State:
        """Return both parts' states."""
        return self.estimator.init(params), self.update.init(params)

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
        """Estimate along directions of ``seed``, then update.

        On an error of the objective, or a coefficient that is not finite, theta is as found: to
        the bit with an exact perturber, else up to the drift of its restore.
        """
        with torch.no_grad():
            plan = self.estimator.plan(params, seed, state[0])
        away = self._away(plan)
        losses = look(self.settings.perturber, params, objective, plan, span, away is not None)
        with _put_back_on_error(params, away):
            estimate = self.settings.clipped(self.estimator.estimate(plan, losses, state[0]))
        rate = lr * estimate.rate
        with span("update"), torch.no_grad():
            state = self._move_(params, plan, estimate, state, seed, rate, away)
        return state, StepInfo(estimate.losses, len(losses), estimate=estimate, lr=rate)

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
        """Take the step again that had the estimate ``terms``; the objective is not looked at.

        Args:
            params: where the step began; moved in place to where it ended.
            terms: of the live step's estimate.
            state: before the step.
            seed: of the step.
            lr: the rate the update was made with.
            extra: of the live step's estimate.
            retrace: go through the perturbations as well, so that the live run's roundings come
                out to the bit; without, the update alone is made and no drift is.

        """
        with torch.no_grad():
            plan = self.estimator.plan(params, seed, state[0])
            away = self._away(plan) if retrace else None
            if retrace:
                for one, perturber in _in_turn(self.settings.perturber, plan, away is not None):
                    with standing_at(params, one.at):
                        perturber.retrace_(params, one)
            estimate = GradientEstimate(plan.distribution, tuple(terms), extra=tuple(extra))
            return self._move_(params, plan, estimate, state, seed, lr, away)

    def trained_entries(self, params: Params, state: State) -> int:
        """Count the entries that the mask of ``state`` lets move; all of them without a mask."""
        return self.estimator.trained_entries(params, state[0])

    def cost(self, params: Params) -> Cost:
        """Add up what the parts declare; the noise kernel's scratch comes on top."""
        perturber = self.settings.perturber
        staying = perturber.staying if self.merges else None
        declared = self.estimator.cost(params, staying or perturber) + self.update.cost(params)
        kernel = noise.scratch_bytes(params) + self.settings.scratch_bytes(params)
        return replace(declared, scratch_bytes=declared.scratch_bytes + kernel)

    def _away(self, plan: Plan) -> Away | None:
        """Return where the last look is to leave theta, for the update to take it back."""
        last = plan.looks[-1]
        if self.merges and last.at is None and last.distribution is plan.distribution:
            return Away(plan.distribution, scaled(last.points[-1], -1.0))
        return None

    def _move_(
        self,
        params: Params,
        plan: Plan,
        estimate: GradientEstimate,
        state: State,
        seed: int,
        lr: float,
        away: Away | None,
    ) -> State:
        with _put_back_on_error(params, away):
            looked = self.estimator.advance(params, plan, estimate, state[0])
        write = self.settings.writer(seed, lr, away)
        moved, by = self.update.apply_(params, estimate, state[1], lr, write)
        return self.estimator.moved(looked, by), moved


def look(
    perturber: Perturber,
    params: Params,
    objective: Objective,
    plan: Plan,
    span: Span,
    stay: bool = False,
) -> list[float]:
    """Return the losses of a plan, in order; with ``stay`` theta is left at the last point."""
    seen: list[float] = []
    for one, by in _in_turn(perturber, plan, stay):
        with standing_at(params, one.at, span):
            if one.data == "anchor":
                with span("anchor"):
                    seen += by.losses(params, objective, one, span)
            else:
                seen += by.losses(params, objective, one, span)
    return seen


def _in_turn(perturber: Perturber, plan: Plan, stay: bool) -> Iterator[tuple[Look, Perturber]]:
    """Walk the looks, each with its perturber; with ``stay`` the last one's stays."""
    *before, last = plan.looks
    yield from ((one, perturber) for one in before)
    staying = perturber.staying if stay else None
    yield last, staying or perturber


@contextmanager
def _put_back_on_error(params: Params, away: Away | None) -> Iterator[None]:
    try:
        yield
    except BaseException:  # why: whatever was raised, theta goes back to where it was found
        if away is not None:
            away.distribution.add_(params, away.back)
        raise
