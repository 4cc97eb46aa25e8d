"""Heavy ball: m <- beta m + g; theta <- theta - lr m (Polyak, 1964), with m dense or replayed.

The form of ``torch.optim.SGD(momentum=beta)``: g is not damped, so a step is up to 1 / (1 - beta)
times as long as one of ZO-SGD. Two ways to have m, equal to rounding while t <= window:

- :class:`Momentum` keeps it, one number a weight;
- :class:`ReplayedMomentum` keeps the last W pairs (seed, c), and draws
  ``m_t = sum_{j < W} beta^j c_{t-j} u(seed_{t-j})`` again at every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from zo_core import noise
from zo_core.base import (
    Cost,
    GradientEstimate,
    Moved,
    Params,
    Piece,
    State,
    UpdateRule,
    Write,
    scaled,
)
from zo_core.updates.moments import moments_bytes, stretch, zeros
from zo_core.updates.window import Past, Window, check_rates, check_window, decayed, remembered


@dataclass(frozen=True)
class Momentum(UpdateRule):
    """The rule with m as tensors: state of one float32 number a weight, one noise pass."""

    beta: float = 0.9

    def __post_init__(self) -> None:
        """Refuse a decay that is not one."""
        check_rates(beta=self.beta)

    def init(self, params: Params) -> State:
        """Return m = 0."""
        return zeros(params)

    def apply_(
        self, params: Params, estimate: GradientEstimate, state: State, lr: float, write: Write
    ) -> tuple[State, Moved]:
        """Move ``params``; the tensors of ``state`` are changed in place."""
        for piece in noise.pieces(params):
            g = estimate.distribution.draw(piece, estimate.terms)
            m = stretch(state, piece).mul_(self.beta).add_(g)
            write.piece_(piece, m * -lr)
        return state, None

    def cost(self, params: Params) -> Cost:
        """One noise pass; m; and pieces for g, the change, and the weights that it is added to."""
        scratch = noise.piece_bytes(params, 3)
        return Cost(noise_passes=1, state_bytes=moments_bytes(params), scratch_bytes=scratch)


@dataclass(frozen=True)
class ReplayedMomentum(UpdateRule):
    """The rule with m drawn again from its seeds: no tensor is kept, W noise passes."""

    in_terms = True  # of one distribution; those of several are written by pieces, each once

    beta: float = 0.9
    window: int = 10

    def __post_init__(self) -> None:
        """Refuse a decay that is not one, and a window that holds nothing."""
        check_rates(beta=self.beta)
        check_window(self.window)

    def init(self, params: Params) -> State:
        """Return an empty window."""
        return ()

    def apply_(
        self, params: Params, estimate: GradientEstimate, state: State, lr: float, write: Write
    ) -> tuple[State, Moved]:
        """Move ``params`` by a sum of terms, in one pass where all are of one distribution."""
        window: Window = remembered(state, estimate, self.window)
        sums = decayed(window, self.beta)
        if len(sums) == 1:
            write.terms_(params, sums[0].distribution, scaled(sums[0].terms, -lr))
            return window, None
        for piece in noise.pieces(params):
            write.piece_(piece, drawn(sums, piece).mul_(-lr))
        return window, None

    def cost(self, params: Params) -> Cost:
        """One noise pass a step of the window, and a few pieces."""
        return Cost(noise_passes=self.window, scratch_bytes=noise.piece_bytes(params, 3))


def drawn(sums: Sequence[Past], piece: Piece) -> Tensor:
    """Return the total of ``sums`` for one piece, shape (n,)."""
    total = sums[0].distribution.draw(piece, sums[0].terms)
    for one in sums[1:]:
        total.add_(one.distribution.draw(piece, one.terms))
    return total
