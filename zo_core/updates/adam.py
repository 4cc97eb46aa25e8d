"""Adam on the estimate (Kingma and Ba, arXiv 1412.6980), with its moments dense or replayed.

::

    m <- beta1 m + (1 - beta1) g       v <- beta2 v + (1 - beta2) g^2
    theta <- theta - lr mhat / (sqrt(vhat) + adam_eps)

with mhat, vhat divided by the weight that their averages have (1 - beta^t). Moments are float32
whatever the weights. Weight decay is decoupled (AdamW), by whoever writes the change.

:class:`ReplayedAdam` keeps the last W pairs (seed, c) instead of m and v, and forms
``m_t = (1 - beta1) sum_{j < W} beta1^j g_{t-j}`` and ``v_t`` likewise from ``g_{t-j}^2``, piece by
piece: AdaMeZO (arXiv 2605.00650). It equals the dense rule, to rounding, while t <= W.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
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
)
from zo_core.updates.moments import moments_bytes, stretch, zeros
from zo_core.updates.window import Window, check_rates, check_window, mean_weight, remembered


@dataclass(frozen=True)
class Adam(UpdateRule):
    """The rule with m and v as tensors: state of two float32 numbers a weight, one noise pass."""

    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 1e-8

    def __post_init__(self) -> None:
        """Refuse decays that are none, and a quotient that may be 0 / 0."""
        _check(self.beta1, self.beta2, self.adam_eps)

    def init(self, params: Params) -> State:
        """Return (steps taken, m, v): none, 0 and 0."""
        return 0, zeros(params), zeros(params)

    def apply_(
        self, params: Params, estimate: GradientEstimate, state: State, lr: float, write: Write
    ) -> tuple[State, Moved]:
        """Move ``params``; the tensors of ``state`` are changed in place."""
        taken, first, second = state
        for piece in noise.pieces(params):
            g = estimate.distribution.draw(piece, estimate.terms)
            m, v = stretch(first, piece), stretch(second, piece)
            m.lerp_(g, 1 - self.beta1)
            v.lerp_(g.square_(), 1 - self.beta2)
            root = torch.sqrt(v, out=g)
            change = _quotient(m.clone(), root, taken + 1, self.beta1, self.beta2, self.adam_eps)
            write.piece_(piece, change.mul_(-lr))
        return (taken + 1, first, second), None

    def cost(self, params: Params) -> Cost:
        """One noise pass; m and v; and pieces for g, the change, and what it is added to."""
        scratch = noise.piece_bytes(params, 3)
        return Cost(noise_passes=1, state_bytes=2 * moments_bytes(params), scratch_bytes=scratch)


@dataclass(frozen=True)
class ReplayedAdam(UpdateRule):
    """The rule with m and v formed again from W seeds: no tensor is kept, W noise passes.

    The averages reach W steps back, and their weights sum to 1 - beta^min(t, W): divided by that,
    mhat and vhat are means of what the window holds. (Divided by 1 - beta2^t, as in Adam, vhat of
    a short window would be a hundred times too small.)
    """

    beta1: float = 0.9
    beta2: float = 0.999
    adam_eps: float = 1e-8
    window: int = 10

    def __post_init__(self) -> None:
        """Refuse decays that are none, and a window that holds nothing."""
        _check(self.beta1, self.beta2, self.adam_eps)
        check_window(self.window)

    def init(self, params: Params) -> State:
        """Return an empty window."""
        return ()

    def apply_(
        self, params: Params, estimate: GradientEstimate, state: State, lr: float, write: Write
    ) -> tuple[State, Moved]:
        """Move ``params``, a piece at a time."""
        window: Window = remembered(state, estimate, self.window)
        for piece in noise.pieces(params):
            m, v = self._moments(window, piece)
            change = _quotient(m, v.sqrt_(), len(window), self.beta1, self.beta2, self.adam_eps)
            write.piece_(piece, change.mul_(-lr))
        return window, None

    def _moments(self, window: Window, piece: Piece) -> tuple[Tensor, Tensor]:
        m = torch.zeros_like(piece.part, dtype=piece.wide)
        v = torch.zeros_like(m)
        for past in reversed(window):  # from the oldest on, as the dense averages are formed
            g = past.distribution.draw(piece, past.terms)
            m.lerp_(g, 1 - self.beta1)
            v.lerp_(g.square_(), 1 - self.beta2)
        return m, v

    def cost(self, params: Params) -> Cost:
        """One noise pass a step of the window; pieces for m, v, g and the weights."""
        return Cost(noise_passes=self.window, scratch_bytes=noise.piece_bytes(params, 4))


def _quotient(
    m: Tensor, root: Tensor, steps: int, beta1: float, beta2: float, adam_eps: float
) -> Tensor:
    """Return mhat / (sqrt(vhat) + adam_eps), from m and sqrt(v); both are overwritten."""
    root.div_(mean_weight(beta2, steps) ** 0.5).add_(adam_eps)
    return m.div_(mean_weight(beta1, steps)).div_(root)


def _check(beta1: float, beta2: float, adam_eps: float) -> None:
    check_rates(beta1=beta1, beta2=beta2)
    if not adam_eps > 0:
        raise ValueError(f"adam_eps must be positive, got {adam_eps}.")
