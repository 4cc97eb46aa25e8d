"""Rademacher directions: independent signs: u in {-1, +1}^d, each with probability 1/2.

One random bit an entry, so about thirty times less to generate than a Gaussian. Same first two
moments; E||g||^2 = (d + n - 1)/n ||grad||^2, the least of all laws with independent entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from zo_core import noise
from zo_core.base import Copies, Distribution, Param, Piece, Term
from zo_core.noise import rows as noise_rows

TITLE = "Rademacher: independent signs: u in {-1, +1}^d, each with probability 1/2"


@dataclass(frozen=True)
class Rademacher(Distribution):
    """The distribution; the fastest kernel of the machine computes it, all with the same bits."""

    law = "rademacher"
    lasting = True

    @property
    def name(self) -> str:
        """Name, as in records."""
        return self.law

    def draw(self, piece: Piece, terms: Sequence[Term]) -> Tensor:
        """Return ``sum_k c_k u(seed_k)`` for one piece."""
        return noise.draw(piece, self.law, terms)

    def add_(self, params: Sequence[Param], terms: Sequence[Term]) -> None:
        """Add ``sum_k c_k u(seed_k)`` to ``params`` in one pass."""
        noise.add_(params, self.law, terms)

    def write(self, piece: Piece, outs: Sequence[Tensor], terms: Sequence[Term]) -> None:
        """Write ``piece`` plus (and minus) ``sum_k c_k u(seed_k)`` elsewhere, in one pass."""
        noise.write(piece, outs, self.law, terms)

    def prepared(self, writes: Sequence[Copies]) -> Callable[[Sequence[Term]], None]:
        """Return what writes many pieces, in one call of the kernel."""
        return noise.prepared(writes, self.law)

    def write_rows(
        self, param: Param, rows: Tensor, outs: Sequence[Tensor], terms: Sequence[Term]
    ) -> None:
        """Write rows of a matrix plus (and minus) ``sum_k c_k u(seed_k)`` elsewhere."""
        noise_rows.write(param, rows, outs, self.law, terms)


def distribution() -> Rademacher:
    """Return the distribution."""
    return Rademacher()
