"""Matrices plus a product of two thin factors: ``W + U V^T``, without the product as a matrix.

The sum over the columns of the factors goes from the first to the last, in float32 (float64 for
float64 weights), every ``*`` and ``+`` rounded once and never contracted; it begins with zero. The
result is rounded to the dtype of W once. So kernels agree to the bit, and with sums over any part
of the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from zo_core.noise import cpu


class Product(NamedTuple):
    """A matrix, where ``source + u v^T`` is written, and with two outs ``source - u v^T``."""

    source: Tensor
    """Shape (m, n), contiguous."""
    outs: Sequence[Tensor]
    """One or two tensors like it; the first may be ``source`` itself."""
    u: Tensor
    """Shape (m, r), contiguous, float32 (float64 for float64 weights)."""
    v: Tensor
    """Shape (n, r), of the same dtype."""


def product(u: Tensor, v: Tensor) -> Tensor:
    """Return ``u v^T`` as it is added: u (m, r) and v (n, r) of one dtype, to (m, n)."""
    total = u.new_zeros(u.shape[0], v.shape[0])
    for j in range(u.shape[1]):  # not a matmul: its bits hang on the shape of the block
        total += u[:, j : j + 1] * v[:, j]
    return total


def write(products: Sequence[Product], piece: int, kernel: bool = True) -> None:
    """Write products: all that the fast form takes, in one call of it.

    Args:
        products: what to write.
        piece: elements that the torch form, the reference, works on at a time, or a row: it holds
            three times as many.
        kernel: whether the fast form may be taken.

    """
    taken: list[Product] = []
    others: list[Product] = []
    for one in products:
        fast = kernel and cpu.takes(one.source) and one.source.dtype != torch.float64
        (taken if fast and not cpu.available() else others).append(one)
    if taken:
        from zo_core.noise import (
            low_rank_cpu,
        )  # why here: it imports numba, an optional dependency

        low_rank_cpu.write(taken)
    for source, outs, u, v in others:
        rows = max(1, piece // source.shape[1])
        for start in range(0, len(source), rows):
            part = slice(start, start + rows)
            change = product(u[part], v)
            for out, new in zip(outs, _both_sides(source[part], change), strict=False):
                out[part].copy_(new)


def _both_sides(old: Tensor, change: Tensor) -> Iterator[Tensor]:
    old = old.clone()  # the first of the outs may be the source
    yield old + change
    yield old - change
