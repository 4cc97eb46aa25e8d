"""Perturbed copies of weights along any distribution that knows how to ``draw`` a piece."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from zo_core import noise
from zo_core.base import Distribution, Piece, Term


def write(along: Distribution, long: Piece, outs: Sequence[Tensor], terms: Sequence[Term]) -> None:
    """Do as ``Distribution.write`` for a piece of any length: one draw a piece, for both signs.

    Scratch is what a draw holds, and one piece more.
    """
    size = noise.piece_of(long.part.device)
    for start in range(0, long.part.numel(), size):
        piece = Piece(long.param, long.part[start : start + size], long.first + start)
        change = along.draw(piece, terms)
        for out in outs:
            out[start : start + size].copy_(change + piece.part)
            change.neg_()  # x - y is x + (-y), to the bit
