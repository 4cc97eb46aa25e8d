"""ZO-signSGD: theta <- theta - lr sign(g), element by element.

Liu, Chen, Chen and Hong, "signSGD via zeroth-order oracle", ICLR 2019, Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

from zo_core import noise
from zo_core.base import (
    Cost,
    GradientEstimate,
    Moved,
    Params,
    State,
    UpdateRule,
    Write,
)


@dataclass(frozen=True)
class Sign(UpdateRule):
    """The rule; it keeps no state. Every entry whose g is not zero moves by exactly lr."""

    def apply_(
        self, params: Params, estimate: GradientEstimate, state: State, lr: float, write: Write
    ) -> tuple[State, Moved]:
        """Move ``params``, a piece at a time."""
        for piece in noise.pieces(params):
            g = estimate.distribution.draw(piece, estimate.terms)
            write.piece_(piece, g.sign_().mul_(-lr))
        return state, None

    def cost(self, params: Params) -> Cost:
        """One noise pass, and pieces for the change and the weights that it is added to."""
        return Cost(noise_passes=1, scratch_bytes=noise.piece_bytes(params, 2))
