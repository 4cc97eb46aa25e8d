"""Orders that depend on names and numbers alone: no global random stream, no tensor.

Plain Python, so that they are the same on every device and while a step is traced.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import lru_cache
from typing import TypeVar

T = TypeVar("T")


def batch_indices(n: int, batch_size: int, seed: int, step: int) -> tuple[int, ...]:
    """Return which of ``n`` train examples make the minibatch of ``step``.

    >>> [batch_indices(5, 2, seed=0, step=step) for step in range(2)]
    [(0, 2), (4, 1)]

    """
    size = min(n, batch_size)
    epoch, at = divmod(step, n // size)
    return _epoch(n, seed, epoch)[at * size : (at + 1) * size]


@lru_cache(maxsize=2)
def _epoch(n: int, seed: int, epoch: int) -> tuple[int, ...]:
    return tuple(shuffled(range(n), f"order {seed} {epoch}"))


def shuffled(items: Iterable[T], name: str) -> list[T]:
    """Return ``items`` in an order that depends on their number and on ``name`` alone."""
    mixed = list(items)
    random.Random(name).shuffle(mixed)
    return mixed
