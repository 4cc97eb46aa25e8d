"""Lower the learning rate when the training loss has risen (MeZO-SVRG's released schedule).

At the end of every window of steps (an epoch): if the mean loss of the window is more than 5 %
above that of the window two before it, rates are divided once more. Five windows must be over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zo_core.base import float32

RISE = 1.05
_COMPARED, _FIRST = 3, 5


@dataclass(frozen=True)
class Annealed:
    """What the schedule knows."""

    factor: float = 1.0  # what rates are multiplied by
    means: tuple[float, ...] = ()  # of the last three windows
    windows: int = 0
    total: float = 0.0  # of the losses of the window that is running
    steps: int = 0  # in it


@dataclass(frozen=True)
class Annealing:
    """The schedule; its state is fed by a number a step, which a trajectory logs."""

    divisor: float
    """0 is off."""
    every: int
    """Steps of a window."""
    floor: float
    """The smallest factor."""

    def __post_init__(self) -> None:
        """Refuse what is no annealing."""
        if self.divisor and self.divisor <= 1:
            raise ValueError(f"anneal must be above 1, or 0 for none, got {self.divisor}.")
        if self.every < 1 or not 0 < self.floor <= 1:
            raise ValueError(
                "anneal_every must be 1 step or more and anneal_floor in (0, 1], got "
                f"{self.every} and {self.floor}."
            )

    def told(self, losses: Sequence[float]) -> tuple[float, ...]:
        """Return what a step's estimate must carry: its mean loss, float32; nothing where off."""
        return (float32(sum(losses) / len(losses)),) if self.divisor else ()

    def after(self, state: Annealed, told: Sequence[float]) -> Annealed:
        """Return the state after a step."""
        if not self.divisor:
            return state
        total, steps = state.total + told[0], state.steps + 1
        if steps < self.every:
            return Annealed(state.factor, state.means, state.windows, total, steps)
        means = (*state.means, total / steps)[-_COMPARED:]
        windows = state.windows + 1
        factor = state.factor
        if windows >= _FIRST and means[-1] > RISE * means[0]:
            factor = max(factor / self.divisor, self.floor)
        return Annealed(factor, means, windows)
