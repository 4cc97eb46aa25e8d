"""Matrices of low rank: U V^T / sqrt(r), with U (m, r) and V (n, r) standard normal.

E[u u^T] = I over draws of both: an entry is a sum of r independent products, each of mean 0 and
variance 1. With V held (LOZO, arXiv 2410.07698, draws it anew every nu steps) the covariance is
I (x) V V^T / r: gradients of a rank-r subspace are seen, those outside it are not.

Neither factor is stored: they are drawn from their seeds for the matrix at hand, so it costs
(m + n) r normals instead of m n, and no product is ever a matrix. Tensors of more than two
dimensions are matrices of shape (shape[0], rest). Tensors of one dimension, and matrices that the
factors would not make smaller (r (m + n) >= m n), get plain Gaussian entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zo_core import noise
from zo_core.base import Copies, Distribution, Param, Piece, Term, derive_seed, is_fake
from zo_core.noise import low_rank
from zo_core.noise import rows as noise_rows
from zo_core.structured import by_pieces


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
        u = self._u(piece, row, block.numel() // width, terms)
        v = self._v(piece, column, width)
        block.view(-1, width).copy_(low_rank.product(u, v))

    def _u(self, piece: Piece, first: int, count: int, terms: Sequence[Term]) -> Tensor:
        """Return rows of U, summed over the terms and over sqrt(rank): shape (count, rank)."""
        root = self.rank**0.5
        own = [Term(derive_seed(t.seed, "U"), t.coefficient / root) for t in terms]
        return self._factor(piece, first, count, own)

    def _v(self, piece: Piece, first: int, count: int) -> Tensor:
        """Return rows of V, shape (count, rank)."""
        return self._factor(piece, first, count, [Term(derive_seed(self.v_seed, "V"), 1.0)])

    def _factor(self, piece: Piece, first: int, count: int, terms: Sequence[Term]) -> Tensor:
        like = piece.part.new_empty(1).expand(count * self.rank)
        flat = noise.draw(Piece(piece.param, like, first * self.rank), "gaussian", terms)
        return flat.view(count, self.rank)

    def add_(self, params: Sequence[Param], terms: Sequence[Term]) -> None:
        """Add ``sum_k c_k u(seed_k)`` to ``params`` in one pass."""
        if not terms:
            return
        matrices = [param for param in params if columns_of(param, self.rank)]
        with torch.no_grad():
            noise.add_([p for p in params if not columns_of(p, self.rank)], "gaussian", terms)
            for param in matrices:
                if param.tensor.is_contiguous() and not is_fake(param.tensor):
                    flat = param.tensor.detach().view(-1)
                    self.write(Piece(param, flat, 0), (flat,), terms)
                else:
                    noise.add_by_pieces_((param,), self, terms)

    def write(self, piece: Piece, outs: Sequence[Tensor], terms: Sequence[Term]) -> None:
        """Write ``piece`` plus (and minus) ``sum_k c_k u(seed_k)`` elsewhere, in one pass."""
        columns = columns_of(piece.param, self.rank)
        if not columns:
            noise.write(piece, outs, "gaussian", terms)
        elif piece.first % columns or piece.part.numel() % columns:  # not of whole rows
            by_pieces.write(self, piece, outs, terms)
        else:
            row, height = piece.first // columns, piece.part.numel() // columns
            u = self._u(piece, row, height, terms)
            self._write_product(piece.part.view(height, columns), outs, u, piece)

    def prepared(self, writes: Sequence[Copies]) -> Callable[[Sequence[Term]], None]:
        """Return what writes many pieces: those of plain entries, in one call of the kernel."""
        low = [one for one in writes if columns_of(one[0].param, self.rank)]
        plain = [one for one in writes if not columns_of(one[0].param, self.rank)]
        parts = noise.prepared(plain, "gaussian"), Distribution.prepared(self, low)

        def write(terms: Sequence[Term]) -> None:
            for part in parts:
                part(terms)

        return write

    def write_rows(
        self, param: Param, rows: Tensor, outs: Sequence[Tensor], terms: Sequence[Term]
    ) -> None:
        """Write rows of a matrix plus (and minus) ``sum_k c_k u(seed_k)`` elsewhere."""
        if not columns_of(param, self.rank):
            noise_rows.write(param, rows, outs, "gaussian", terms)
            return
        whole = Piece(param, param.tensor.detach().view(-1), 0)
        u = self._u(whole, 0, len(param.tensor), terms)
        self._write_product(param.tensor.detach()[rows], outs, u[rows], whole)

    def _write_product(
        self, source: Tensor, outs: Sequence[Tensor], u: Tensor, piece: Piece
    ) -> None:
        columns = source.shape[1]
        v = self._v(piece, 0, columns)
        rows = max(1, noise.piece_of(source.device) // columns)
        low_rank.write(source, [out.view(source.shape) for out in outs], u, v, rows)


def columns_of(param: Param, rank: int) -> int:
    """Return n where the tensor is treated as a (m, n) matrix of low rank, else 0."""
    if param.tensor.dim() < 2 or not param.tensor.numel():
        return 0
    m = param.tensor.shape[0]
    n = param.tensor.numel() // m
    return n if rank * (m + n) < m * n else 0


def scratch_bytes(params: Sequence[Param], rank: int) -> int:
    """Bound what is held meanwhile: pieces of products and sums, U, and V twice."""
    factors, pieces = 0, 0
    for param in params:
        columns = columns_of(param, rank)
        if columns:
            rows = param.tensor.numel() // columns
            factors = max(factors, (rows + 2 * columns) * rank)
            most = max(columns, noise.piece_of(param.tensor.device))
            pieces = max(pieces, min(param.tensor.numel(), most))
    widest = max(8 if p.tensor.dtype == torch.float64 else 4 for p in params)
    return (3 * pieces + factors) * widest


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
