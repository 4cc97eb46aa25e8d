"""Matrices of low rank: U V^T / sqrt(r), with U (m, r) and V (n, r) standard normal.

E[u u^T] = I over draws of both: an entry is a sum of r independent products, each of mean 0 and
variance 1. With V held (LOZO, arXiv 2410.07698, draws it anew every nu steps) the covariance is
I (x) V V^T / r: gradients of a rank-r subspace are seen, those outside it are not.

Neither factor is ever stored: rows of U and V are drawn from their seeds for the piece at hand, so
a (m, n) matrix costs about n r normals a piece instead of one an entry. Tensors of more than two
dimensions are matrices of shape (shape[0], rest). Tensors of one dimension, and matrices that the
factors would not make smaller (r (m + n) >= m n), get plain Gaussian entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zo_core import noise
from zo_core.base import Distribution, Param, Piece, Term, derive_seed


@dataclass(frozen=True)
class LowRank(Distribution):
    """``U V^T / sqrt(rank)``: U of a direction's seed, V of ``v_seed``."""

    rank: int
    v_seed: int

    def __post_init__(self) -> None:
        """Refuse a rank that is none."""
        if self.rank < 1:
            raise ValueError(f"rank must be 1 or more, got {self.rank}.")

    @property
    def name(self) -> str:
        """Name, as in records."""
        return f"low_rank({self.rank})"

    def draw(self, piece: Piece, terms: Sequence[Term]) -> Tensor:
        """Return ``sum_k c_k u(seed_k)`` for one piece."""
        columns = columns_of(piece.param, self.rank)
        if not columns:
            return noise.draw(piece, "gaussian", terms)
        total = torch.zeros_like(piece.part, dtype=piece.wide)
        for start, end in _blocks(piece.first, piece.part.numel(), columns):
            self._add_block_(total[start:end], piece, start, columns, terms)
        return total

    def _add_block_(
        self, block: Tensor, piece: Piece, start: int, columns: int, terms: Sequence[Term]
    ) -> None:
        row, column = divmod(piece.first + start, columns)
        width = min(columns, block.numel())
        height = block.numel() // width
        rows = [Term(derive_seed(t.seed, "U"), t.coefficient / self.rank**0.5) for t in terms]
        u = self._factor(piece, row, height, rows)
        v = self._factor(piece, column, width, [Term(derive_seed(self.v_seed, "V"), 1.0)])
        matrix = block.view(height, width)
        for j in range(self.rank):  # not a matmul: its bits hang on the shape of the block
            matrix += u[:, j : j + 1] * v[:, j]

    def _factor(self, piece: Piece, first: int, count: int, terms: Sequence[Term]) -> Tensor:
        """Return rows ``first ...`` of a factor, shape (count, rank)."""
        like = piece.part.new_empty(1).expand(count * self.rank)
        flat = noise.draw(Piece(piece.param, like, first * self.rank), "gaussian", terms)
        return flat.view(count, self.rank)

    def add_(self, params: Sequence[Param], terms: Sequence[Term]) -> None:
        """Add ``sum_k c_k u(seed_k)`` to ``params`` in one pass, a piece at a time."""
        noise.add_by_pieces_(params, self, terms)


def columns_of(param: Param, rank: int) -> int:
    """Return n where the tensor is treated as a (m, n) matrix of low rank, else 0."""
    if param.tensor.dim() < 2 or not param.tensor.numel():
        return 0
    m = param.tensor.shape[0]
    n = param.tensor.numel() // m
    return n if rank * (m + n) < m * n else 0


def scratch_bytes(params: Sequence[Param], rank: int) -> int:
    """Bound what a draw holds: the piece, a product, and the rows of U and V that meet in it."""
    factors = 0
    for param in params:
        columns = columns_of(param, rank)
        if columns:
            piece = noise.piece_of(param.tensor.device)
            width = min(columns, piece)
            rows = min(param.tensor.shape[0], piece // width)
            factors = max(factors, (width + rows) * rank)
    widest = max(8 if p.tensor.dtype == torch.float64 else 4 for p in params)
    return noise.piece_bytes(params, 2) + factors * widest


def _blocks(first: int, count: int, columns: int) -> Iterator[tuple[int, int]]:
    """Cut places ``first .. first + count - 1`` of a matrix into parts of rows, and whole rows."""
    start = 0
    while start < count:
        column = (first + start) % columns
        left = count - start
        whole = left - left % columns if column == 0 and left >= columns else 0
        end = start + (whole or min(left, columns - column))
        yield start, end
        start = end
