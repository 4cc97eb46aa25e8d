"""Philox 4x32-10 in plain torch: the readable definition of every random bit of the engine.

Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A
counter-based generator: four 32-bit words are a function of a 128-bit counter and a 64-bit key, so
any part of a stream can be had alone, in any order, on any device, with the same bits.

Ours: key = the direction's seed; counter = (lane index, 64 bits; tensor key, 64 bits). Lane ``n``
of the stream lives in block ``n // LANES``; a block is WORDS = 4 * LANES words, of which word
``j`` of lane ``l`` stands at ``j * LANES + l`` (lane-wise: a compiler can vectorise it, and a row
of lanes is a whole cache line on a GPU, in 16 bits too).
**This layout is part of the format of a trajectory: it can't change without a new format number.**
"""

from __future__ import annotations

import torch
from torch import Tensor

LANES = 64
WORDS = 4 * LANES

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_ROUNDS = 10


def philox4x32(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Return the four words of each counter.

    Args:
        counter: four int64 tensors of one shape, values in [0, 2^32).
        key: two words in [0, 2^32).

    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        low0, high0 = _product(c0, _M0)
        low1, high1 = _product(c2, _M1)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    # int64 wraps at 2^64, and the arithmetic shift is masked: the low and high words are exact.
    product = word * multiplier
    return product & _MASK, (product >> 32) & _MASK


def words(seed: int, key: int, first_block: int, blocks: int, device: torch.device) -> Tensor:
    """Return ``blocks`` blocks of the stream (seed, key), from block ``first_block`` on.

    Returns:
        int64 tensor of shape (blocks, 4, LANES), values in [0, 2^32).

    """
    lane = torch.arange(first_block * LANES, (first_block + blocks) * LANES, device=device)
    counter = (
        lane & _MASK,
        (lane >> 32) & _MASK,
        torch.full_like(lane, key & _MASK),
        torch.full_like(lane, (key >> 32) & _MASK),
    )
    out = philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))
    return torch.stack([w.view(blocks, LANES) for w in out], dim=1)
