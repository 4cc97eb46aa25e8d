"""Noise added to a few rows of a matrix, read elsewhere: what an embedding looks up.

A row gets the numbers that it gets where the whole matrix is perturbed, to the bit, and nothing is
drawn for the others but what their blocks share.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zo_core import noise
from zo_core.base import Param, Piece, Term
from zo_core.noise import cpu


def write(
    param: Param,
    rows: Tensor,
    outs: Sequence[Tensor],
    name: str,
    terms: Sequence[Term],
    threshold: float | None = None,
) -> None:
    """Write ``rows`` of a matrix plus (and minus, where ``outs`` is two) the noise of ``terms``.

    Args:
        param: the matrix, (m, n), contiguous.
        rows: which, (k,) int64, in any order, repeated or not.
        outs: one or two tensors (k, n) of its dtype, contiguous.
        name: as for ``noise.write``.
        terms: (seed, coefficient) pairs.
        threshold: as for ``noise.write``.

    """
    matrix, n = param.tensor.detach(), param.tensor.shape[1]
    if cpu.takes(matrix) and matrix.dtype != torch.float64 and cpu.available() is None:
        cpu.write_rows(matrix, rows, outs, name, param.key, terms, threshold)
        return
    for place, row in enumerate(rows.tolist()):
        piece = Piece(param, matrix[row], row * n)
        noise.write(piece, [out[place] for out in outs], name, terms, threshold)
