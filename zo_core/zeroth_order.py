"""A zeroth-order method: an estimator, an update rule, and how weights are moved and written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from zo_core import noise
from zo_core.base import (
    Cost,
    Estimator,
    GradientEstimate,
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
            drifts by a rounding or two); "exact" saves what it perturbs, module by module, and
            draws a direction again for each forward pass of a query (micro-batches, anchor sets,
            tied weights); "batched" is exact, and evaluates all points of a look in one pass.
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

    def writer(self, seed: int, lr: float) -> Writer:
        """Return what writes the step of ``seed``."""
        return Writer(seed, self.rounding, lr * self.weight_decay, self.decay_group)  # type: ignore[arg-type]  # why: picked above

    def scratch_bytes(self, params: Params) -> int:
        """Bound what writing allocates beside the kernel's own scratch: pieces, or nothing."""
        plain = self.rounding == "nearest" and not self.weight_decay
        return 0 if plain else noise.piece_bytes(params, _WRITTEN)

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

        On an error of the objective theta is as found: to the bit with an exact perturber, else
        up to the drift of its restore.
        """
        with torch.no_grad():
            plan = self.estimator.plan(params, seed, state[0])
        losses = look(self.settings.perturber, params, objective, plan, span)
        estimate = self.settings.clipped(self.estimator.estimate(plan, losses, state[0]))
        rate = lr * estimate.rate
        with span("update"), torch.no_grad():
            state = self._move_(params, plan, estimate, state, seed, rate)
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
                out to the bit; without, the drift of the restores is left out.

        """
        with torch.no_grad():
            plan = self.estimator.plan(params, seed, state[0])
            if retrace:
                for one in plan.looks:
                    with standing_at(params, one.at):
                        self.settings.perturber.retrace_(params, one)
            estimate = GradientEstimate(plan.distribution, tuple(terms), extra=tuple(extra))
            return self._move_(params, plan, estimate, state, seed, lr)

    def trained_entries(self, params: Params, state: State) -> int:
        """Count the entries that the mask of ``state`` lets move; all of them without a mask."""
        return self.estimator.trained_entries(params, state[0])

    def cost(self, params: Params) -> Cost:
        """Add up what the parts declare; the noise kernel's scratch comes on top."""
        declared = self.estimator.cost(params, self.settings.perturber) + self.update.cost(params)
        kernel = noise.scratch_bytes(params) + self.settings.scratch_bytes(params)
        return replace(declared, scratch_bytes=declared.scratch_bytes + kernel)

    def _move_(
        self,
        params: Params,
        plan: Plan,
        estimate: GradientEstimate,
        state: State,
        seed: int,
        lr: float,
    ) -> State:
        looked = self.estimator.advance(params, plan, estimate, state[0])
        write = self.settings.writer(seed, lr)
        moved, by = self.update.apply_(params, estimate, state[1], lr, write)
        return self.estimator.moved(looked, by), moved


def look(
    perturber: Perturber, params: Params, objective: Objective, plan: Plan, span: Span
) -> list[float]:
    """Return the losses of a plan, in order."""
    seen: list[float] = []
    for one in plan.looks:
        with standing_at(params, one.at, span):
            if one.data == "anchor":
                with span("anchor"):
                    seen += perturber.losses(params, objective, one, span)
            else:
                seen += perturber.losses(params, objective, one, span)
    return seen
