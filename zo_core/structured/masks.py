"""The masks: of small weights (computed, packed or dense), and of a seed.

A stored mask is written from a computed one, in place: what holds it is the caller's to declare.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zo_core import noise
from zo_core.base import Param, Params, Piece
from zo_core.structured.masked import Mask

_BYTE = 8


@dataclass(frozen=True, eq=False)
class SmallWeights(Mask):
    """Trains the entries with |theta| <= threshold, *as they stand*: they must be unperturbed."""

    thresholds: Mapping[int, float]  # by key of the tensor; values of its dtype, or infinity

    def frozen(self, piece: Piece) -> Tensor:
        """Return |theta| > threshold."""
        return piece.part.abs() > self.thresholds[piece.param.key]


@dataclass(frozen=True)
class RandomEntries(Mask):
    """Trains each entry with probability ``trained_fraction``, decided by a seed. No memory."""

    trained_fraction: float
    seed: int

    def frozen(self, piece: Piece) -> Tensor:
        """Draw the mask again."""
        return noise.uniform(piece, self.seed) >= self.trained_fraction


@dataclass(frozen=True, eq=False)
class DenseMask(Mask):
    """One number an entry, in the dtype of the weights: 1 is trained, 0 is frozen."""

    tensors: Mapping[int, Tensor]  # by key

    @classmethod
    def empty(cls, params: Params) -> DenseMask:
        """Return a mask that freezes all."""
        return cls({p.key: torch.zeros_like(p.tensor.detach()).contiguous() for p in params})

    def frozen(self, piece: Piece) -> Tensor:
        """Read the mask."""
        return self._at(piece) == 0

    def write_(self, params: Params, mask: Mask) -> None:
        """Become ``mask``, evaluated now."""
        for piece in noise.pieces(params):
            self._at(piece).copy_(~mask.frozen(piece))

    def _at(self, piece: Piece) -> Tensor:
        flat = self.tensors[piece.param.key].view(-1)
        return flat[piece.first : piece.first + piece.part.numel()]


@dataclass(frozen=True, eq=False)
class PackedMask(Mask):
    """One bit an entry: bit ``i`` of byte ``b`` belongs to entry ``8 b + i``; 1 is trained."""

    tensors: Mapping[int, Tensor]  # by key: (ceil(n / 8),) uint8

    @classmethod
    def empty(cls, params: Params) -> PackedMask:
        """Return a mask that freezes all."""
        return cls({p.key: _packed_zeros(p) for p in params})

    def frozen(self, piece: Piece) -> Tensor:
        """Unpack the mask; scratch is two bytes an entry."""
        held, skip = self._at(piece)
        bits = (held.unsqueeze(1) & _weights(held)) == 0
        return bits.view(-1)[skip : skip + piece.part.numel()]

    def write_(self, params: Params, mask: Mask) -> None:
        """Become ``mask``, evaluated now."""
        for tensor in self.tensors.values():
            tensor.zero_()
        for piece in noise.pieces(params):
            held, skip = self._at(piece)
            bits = held.new_zeros(held.numel() * _BYTE)
            bits[skip : skip + piece.part.numel()] = ~mask.frozen(piece)
            # Or: two pieces of a tensor may share a byte.
            held |= (bits.view(-1, _BYTE) * _weights(held)).sum(1, dtype=torch.uint8)

    def _at(self, piece: Piece) -> tuple[Tensor, int]:
        """Return the bytes that hold a piece, and the bits before it in the first of them."""
        first, skip = divmod(piece.first, _BYTE)
        count = _bytes(skip + piece.part.numel())
        return self.tensors[piece.param.key][first : first + count], skip


def trained(params: Params, mask: Mask) -> int:
    """Count the entries that are not frozen, by one pass over the mask."""
    counts = [(~mask.frozen(piece)).sum() for piece in noise.pieces(params)]
    return int(torch.stack([count.cpu() for count in counts]).sum())


def packed_bytes(params: Params) -> int:
    """Return what a packed mask of ``params`` occupies."""
    return sum(_bytes(p.tensor.numel()) for p in params)


def _bytes(bits: int) -> int:
    return -(-bits // _BYTE)


def _packed_zeros(param: Param) -> Tensor:
    count = _bytes(param.tensor.numel())
    return torch.zeros(count, dtype=torch.uint8, device=param.tensor.device)


def _weights(like: Tensor) -> Tensor:
    """Return 1, 2, 4 ... 128, made where they are used: a copy from the host would wait for it."""
    ones = torch.ones(_BYTE, dtype=torch.uint8, device=like.device)
    return torch.bitwise_left_shift(
        ones, torch.arange(_BYTE, dtype=torch.uint8, device=like.device)
    )
