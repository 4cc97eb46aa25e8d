"""Philox 4x32-10 in plain torch: where every random bit of the engine begins.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A
counter-based generator: four 32-bit words are a function of a 128-bit counter and a 64-bit key, so
any part of a stream can be had alone, in any order, on any device, with the same bits. What is
made of the words stands in ``stream``.
"""

from __future__ import annotations

from torch import Tensor

M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
MASK = 0xFFFFFFFF
ROUNDS = 10


def philox4x32(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Return the four words of each counter.

    Args:
        counter: four int64 tensors of one shape, values in [0, 2^32).
        key: two words in [0, 2^32).

    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        low0, high0 = _product(c0, M0)
        low1, high1 = _product(c2, M1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return c0, c1, c2, c3


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    # int64 wraps at 2^64, and the arithmetic shift is masked: the low and high words are exact.
    product = word * multiplier
    return product & MASK, (product >> 32) & MASK
