"""The stream of random words, in plain torch: Philox seeds a block, xoshiro runs through it.

A stream belongs to (seed, tensor key) and is cut into blocks of WORDS = STEPS * LANES words of 32
bits. The lanes of a block are generators xoshiro128++ (Blackman and Vigna, "Scrambled linear
pseudorandom number generators", ACM TOMS 2021), one word a step; the four words of state that lane
``l`` of block ``b`` begins with are those of Philox for counter (b * LANES + l, 64 bits; tensor
key, 64 bits) and key = seed. Word ``s * LANES + l`` of a block is word ``s`` of lane ``l``: a row
of lanes lies side by side, so a compiler can vectorise it, and a GPU writes it in one go.

So a block can be had alone, in any order, with the same bits on any device, as with Philox alone;
and a word costs a fifth of what it costs there. Both generators pass BigCrush (see their papers).

**This layout is part of the format of a trajectory: it can't change without a new format number.**
"""

from __future__ import annotations

import torch
from torch import Tensor

from zo_core.noise.philox import MASK, philox4x32

LANES = 32
STEPS = 32
WORDS = STEPS * LANES
TAIL = 0x5851F42D4C957F2D
"""What turns a seed into that of the words which ``tail_words`` returns."""


def words(seed: int, key: int, first_block: int, blocks: int, device: torch.device) -> Tensor:
    """Return ``blocks`` blocks of the stream (seed, key), from block ``first_block`` on.

    Returns:
        int64 tensor of shape (blocks, STEPS, LANES), values in [0, 2^32).

    """
    lane = torch.arange(first_block * LANES, (first_block + blocks) * LANES, device=device)
    state = [w.view(blocks, LANES) for w in _philox_at(lane, seed, key)]
    out = torch.empty((blocks, STEPS, LANES), dtype=torch.int64, device=device)
    for step in range(STEPS):
        out[:, step] = _next_(state)
    return out


def tail_words(seed: int, key: int, elements: Tensor) -> Tensor:
    """Return a word for each of ``elements`` (int64), of a stream apart from all others.

    The first of Philox's words at counter (element, tensor key); shape of ``elements``, int64.
    """
    return _philox_at(elements, seed ^ TAIL, key)[0]


def _philox_at(place: Tensor, seed: int, key: int) -> tuple[Tensor, ...]:
    counter = (
        place & MASK,
        (place >> 32) & MASK,
        torch.full_like(place, key & MASK),
        torch.full_like(place, (key >> 32) & MASK),
    )
    return philox4x32(counter, (seed & MASK, (seed >> 32) & MASK))


def _next_(state: list[Tensor]) -> Tensor:
    """Step xoshiro128++ in place, and return its word."""
    s0, s1, s2, s3 = state
    word = (_rotated(s0 + s3 & MASK, 7) + s0) & MASK
    s2, s3 = s2 ^ s0, s3 ^ s1
    state[:] = s0 ^ s3, s1 ^ s2, s2 ^ (s1 << 9) & MASK, _rotated(s3, 11)
    return word


def _rotated(word: Tensor, by: int) -> Tensor:
    return (word << by | word >> (32 - by)) & MASK
