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
from zo_core.noise.low_rank import Product
from zo_core.structured import by_pieces

_FACTORS = 1 << 19  # elements of factors that are drawn, and used, at once: 2 MiB

_Rows = tuple[Piece, int, int]
"""A piece, and of one of its tensor's factors the first row and how many."""


@dataclass(frozen=True)
class LowRank(Distribution):
    """``U V^T / sqrt(rank)``: U of a direction's seed, V of ``v_seed``."""

    lasting = True
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
        (u,) = self._u([(piece, row, block.numel() // width)], terms)
        (v,) = self._v([(piece, column, width)])
        block.view(-1, width).copy_(low_rank.product(u, v))

    def _u(self, rows: Sequence[_Rows], terms: Sequence[Term]) -> list[Tensor]:
        """Return rows of U of each, summed over terms and over sqrt(rank): (count, rank)."""
        root = self.rank**0.5
        return self._factors(
            rows, [Term(derive_seed(t.seed, "U"), t.coefficient / root) for t in terms]
        )

    def _v(self, rows: Sequence[_Rows]) -> list[Tensor]:
        """Return rows of V of each, shape (count, rank)."""
        return self._factors(rows, [Term(derive_seed(self.v_seed, "V"), 1.0)])

    def _factors(self, rows: Sequence[_Rows], terms: Sequence[Term]) -> list[Tensor]:
        drawn: list[Copies] = []
        for piece, first, count in rows:
            flat = piece.part.new_zeros(count * self.rank, dtype=piece.wide)
            drawn.append((Piece(piece.param, flat, first * self.rank), (flat,)))
        noise.prepared(drawn, "gaussian")(terms)
        return [flat.view(-1, self.rank) for _, (flat,) in drawn]

    def add_(self, params: Sequence[Param], terms: Sequence[Term]) -> None:
        """Add ``sum_k c_k u(seed_k)`` to ``params`` in one pass."""
        if not terms:
            return
        matrices = [param for param in params if columns_of(param, self.rank)]
        together: list[Copies] = []
        with torch.no_grad():
            noise.add_([p for p in params if not columns_of(p, self.rank)], "gaussian", terms)
            for param in matrices:
                if param.tensor.is_contiguous() and not is_fake(param.tensor):
                    flat = param.tensor.detach().view(-1)
                    together.append((Piece(param, flat, 0), (flat,)))
                else:
                    noise.add_by_pieces_((param,), self, terms)
            for group in _groups(together, self.rank):
                self._write(group, terms)

    def write(self, piece: Piece, outs: Sequence[Tensor], terms: Sequence[Term]) -> None:
        """Write ``piece`` plus (and minus) ``sum_k c_k u(seed_k)`` elsewhere, in one pass."""
        columns = columns_of(piece.param, self.rank)
        if not columns:
            noise.write(piece, outs, "gaussian", terms)
        elif piece.first % columns or piece.part.numel() % columns:  # not of whole rows
            by_pieces.write(self, piece, outs, terms)
        else:
            self._write([(piece, outs)], terms)

    def prepared(self, writes: Sequence[Copies]) -> Callable[[Sequence[Term]], None]:
        """Return what writes many pieces, all of whole rows, in few calls of the kernels."""
        low = [one for one in writes if columns_of(one[0].param, self.rank)]
        plain = [one for one in writes if not columns_of(one[0].param, self.rank)]
        write_plain, groups = noise.prepared(plain, "gaussian"), _groups(low, self.rank)

        def write(terms: Sequence[Term]) -> None:
            write_plain(terms)
            for group in groups:
                self._write(group, terms)

        return write

    def write_rows(
        self, param: Param, rows: Tensor, outs: Sequence[Tensor], terms: Sequence[Term]
    ) -> None:
        """Write rows of a matrix plus (and minus) ``sum_k c_k u(seed_k)`` elsewhere."""
        columns = columns_of(param, self.rank)
        if not columns:
            noise_rows.write(param, rows, outs, "gaussian", terms)
            return
        whole = Piece(param, param.tensor.detach().view(-1), 0)
        (u,), (v,) = (
            self._u([(whole, 0, len(param.tensor))], terms),
            self._v([(whole, 0, columns)]),
        )
        piece = noise.piece_of(param.tensor.device)
        low_rank.write([Product(param.tensor.detach()[rows], outs, u[rows], v)], piece)

    def _write(self, writes: Sequence[Copies], terms: Sequence[Term]) -> None:
        """Write pieces of whole rows."""
        rows, columns = [], []
        for piece, _ in writes:
            n = columns_of(piece.param, self.rank)
            rows.append((piece, piece.first // n, piece.part.numel() // n))
            columns.append((piece, 0, n))
        factors = zip(writes, self._u(rows, terms), self._v(columns), strict=True)
        products = [
            Product(piece.part.view(len(u), len(v)), [o.view(len(u), len(v)) for o in outs], u, v)
            for (piece, outs), u, v in factors
        ]
        low_rank.write(products, noise.piece_of(writes[0][0].part.device))


def _groups(writes: Sequence[Copies], rank: int) -> list[list[Copies]]:
    """Cut a list so that the factors of a group are few: at most ``_FACTORS``, or a matrix's."""
    groups: list[list[Copies]] = []
    left = 0
    for one in writes:
        size = _factor_elements(one[0].param, rank)
        if size > left:
            groups.append([])
            left = _FACTORS
        groups[-1].append(one)
        left -= size
    return groups


def columns_of(param: Param, rank: int) -> int:
    """Return n where the tensor is treated as a (m, n) matrix of low rank, else 0."""
    if param.tensor.dim() < 2 or not param.tensor.numel():
        return 0
    m = param.tensor.shape[0]
    n = param.tensor.numel() // m
    return n if rank * (m + n) < m * n else 0


def scratch_bytes(params: Sequence[Param], rank: int) -> int:
    """Bound what is held meanwhile: pieces of products and sums, U and V, and V again."""
    sizes = [_factor_elements(param, rank) for param in params]
    factors = max(min(sum(sizes), _FACTORS), *sizes)
    pieces = 0
    for param in params:
        columns = columns_of(param, rank)
        if columns:
            most = max(columns, noise.piece_of(param.tensor.device))
            pieces = max(pieces, min(param.tensor.numel(), most))
    widest = max(8 if p.tensor.dtype == torch.float64 else 4 for p in params)
    return (3 * pieces + 2 * factors) * widest


def _factor_elements(param: Param, rank: int) -> int:
    columns = columns_of(param, rank)
    return (param.tensor.numel() // columns + columns) * rank if columns else 0


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
