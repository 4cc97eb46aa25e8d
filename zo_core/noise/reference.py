"""From random words to noise, in plain torch: the oracle that every kernel must agree with.

Only integer operations and the IEEE float32 operations ``+`` and ``*`` are used, each rounded once
and never contracted. They give the same bits on every device, so kernels agree *to the bit*.

Element ``e`` of a tensor and its words (see ``stream`` for the layout of a block):

- ``gaussian``: 16 bits an element. Block ``e // 2048``; a word makes the elements ``64 s + l``
  (lower half) and ``64 s + 32 + l`` (upper half), s its step and l its lane. Bit 15 of a half is
  the sign, the other 15 choose one of 2^15 quantiles (``quantile.BODY``); who falls into the
  outermost cell, past 4.17 sigma, gets 23 bits more, of a word of its own (``quantile.TAIL``).
- ``rademacher``: one bit an element. Block ``e // 32768``; bit ``k`` of the word of step ``s`` and
  lane ``l`` belongs to element ``1024 s + 32 k + l``, and says that the sign is minus.
- ``uniform``: block ``e // 1024``, the word at the element's own place; its upper 24 bits are a
  number on [0, 1). Not a direction: it decides masks and roundings, from the seed's complement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from zo_core.base import Term, is_fake
from zo_core.noise.quantile import BODY, TAIL, TAIL_BITS, TAIL_ROW
from zo_core.noise.stream import LANES, STEPS, WORDS, tail_words, words

CHUNK = 1 << 16
"""Elements per sweep on the CPU: scratch stays below 5 MiB."""
DEVICE_CHUNK = 1 << 20
"""Elements per sweep elsewhere: launches cost more than memory there."""

_BITS = 32


def _row(v: Tensor) -> Tensor:
    """Return the exponent of float32 ``v`` and the first bit of its fraction, as one integer."""
    return v.view(torch.int32) >> 22


def _polynomial(table: Sequence[Sequence[float]], row: Tensor, v: Tensor) -> Tensor:
    # First where fake tensors are made, then where ``v`` is.
    c = torch.tensor(table, dtype=torch.float32).to(v.device).t()
    z = c[3][row]
    for power in (2, 1, 0):
        z = z * v + c[power][row]
    return z


def _body(half: Tensor) -> Tensor:
    """Return the quantiles of 16-bit words, float32; 0 where the tail must be asked."""
    v = ((half & 0x7FFF) * 2 + 1).float()
    z = _polynomial(BODY, _row(v) & 31, v)
    return torch.where(half >> 15 == 1, -z, z)


def _tail(word: Tensor) -> Tensor:
    """Return the magnitude of an outermost element from its own word, float32."""
    v = (2 * (word >> (32 - TAIL_BITS)) + 1).float() * 2.0**-TAIL_BITS
    return _polynomial(TAIL, _row(v) - TAIL_ROW, v)


def _gaussian(seed: int, key: int, first: int, blocks: int, device: torch.device) -> Tensor:
    w = words(seed, key, first, blocks, device)
    halves = torch.stack([w & 0xFFFF, w >> 16], dim=2).view(-1)
    z = _body(halves)
    if is_fake(z):
        return z
    outermost = ((halves & 0x7FFF) == 0).nonzero()[:, 0]
    for i in torch.split(outermost, WORDS):
        tail = _tail(tail_words(seed, key, i + first * 2 * WORDS))
        z[i] = torch.where(halves[i] >> 15 == 1, -tail, tail)
    return z


def _rademacher(seed: int, key: int, first: int, blocks: int, device: torch.device) -> Tensor:
    w = words(seed, key, first, blocks, device).view(blocks, STEPS, 1, LANES)
    bit = torch.arange(_BITS, device=device).view(1, 1, _BITS, 1)
    return (1 - 2 * ((w >> bit) & 1)).view(-1).float()


def _uniform(seed: int, key: int, first: int, blocks: int, device: torch.device) -> Tensor:
    return (words(~seed, key, first, blocks, device).view(-1) >> 8).float() * 2.0**-24


_Sampler = Callable[[int, int, int, int, torch.device], Tensor]
_SAMPLERS: dict[str, tuple[_Sampler, int]] = {  # and the elements of a block
    "gaussian": (_gaussian, 2 * WORDS),
    "rademacher": (_rademacher, WORDS * _BITS),
    "uniform": (_uniform, WORDS),
}
LAWS = tuple(_SAMPLERS)


def chunk_of(device: torch.device) -> int:
    """Return how many elements ``write`` sweeps at a time on ``device``."""
    return CHUNK if device.type == "cpu" else DEVICE_CHUNK


def scratch_bytes(count: int, device: torch.device) -> int:
    """Bound what ``write`` allocates for ``count`` elements: by those of a sweep, whole blocks."""
    sweep = min(count, chunk_of(device))
    return max(52 * (sweep + 4 * WORDS), 28 * (sweep + 2 * WORDS * _BITS))


def sample(
    name: str,
    seed: int,
    key: int,
    count: int,
    device: torch.device | None = None,
    first: int = 0,
) -> Tensor:
    """Return elements ``first .. first + count - 1`` of the stream (seed, key).

    Args:
        name: "gaussian", "rademacher" or "uniform".
        seed: the direction's seed, 64 bits.
        key: the tensor's key, 64 bits.
        count: how many.
        device: where; the CPU by default.
        first: where to start.

    Returns:
        float32 tensor of shape (count,).

    """
    sampler, size = _SAMPLERS[name]
    block, skip = divmod(first, size)
    blocks = -(-(skip + count) // size)
    return sampler(seed, key, block, blocks, device or torch.device("cpu"))[skip : skip + count]


def write(
    source: Tensor,
    outs: Sequence[Tensor],
    name: str,
    key: int,
    terms: Sequence[Term],
    first: int = 0,
    threshold: float | None = None,
    chunk: int = 0,
) -> None:
    """Write ``source + sum_k c_k noise(seed_k)``, and with two ``outs`` the difference as well.

    The products and their sum (in the order of ``terms``) are float32, or float64 for float64
    weights; results are rounded to the dtype of ``source`` once, to nearest, ties to even. In
    bfloat16 what is below the normal range becomes zero of its sign, as processors that have an
    instruction for it do it.

    Args:
        source: shape (n,), floating point.
        outs: one or two tensors like it; the first may be ``source`` itself.
        name: "gaussian", "rademacher" or "uniform".
        key: the tensor's key.
        terms: (seed, coefficient) pairs.
        first: place of ``source[0]`` in the stream.
        threshold: where abs(source) is above it, ``source`` is what is written.
        chunk: elements per sweep; what suits the device where it is 0.

    """
    wide = torch.float64 if source.dtype == torch.float64 else torch.float32
    chunk = chunk or chunk_of(source.device)
    for start in range(0, source.numel(), chunk):
        old = source[start : start + chunk]
        # x + (-0.0) is x to the bit, whatever x is.
        total = torch.full(old.shape, -0.0, dtype=wide, device=old.device)
        for term in terms:
            z = sample(name, term.seed, key, old.numel(), old.device, first + start)
            total += z.to(wide) * torch.tensor(term.coefficient, dtype=wide)
        moves = old.to(wide, copy=len(outs) == 2), total
        fixed = None if threshold is None else old.to(wide).abs() > threshold
        for out, new in zip(outs, _both_sides(*moves), strict=False):
            new = _without_subnormals(new) if out.dtype == torch.bfloat16 else new
            part = out[start : start + chunk]
            part.copy_(new if fixed is None else torch.where(fixed, old.to(wide), new))


def _without_subnormals(x: Tensor) -> Tensor:
    return torch.where(x.abs() < torch.finfo(torch.float32).tiny, x * 0.0, x)


def _both_sides(old: Tensor, change: Tensor) -> Iterator[Tensor]:
    yield old + change
    yield old - change


def write_rounded(
    flat: Tensor,
    name: str,
    key: int,
    terms: Sequence[Term],
    rounding: int,
    first: int = 0,
    chunk: int = 0,
) -> None:
    """Add ``sum_k c_k noise(seed_k)`` to 16-bit ``flat``, rounded by the bits of ``rounding``."""
    chunk = chunk or chunk_of(flat.device)
    for start in range(0, flat.numel(), chunk):
        part, place = flat[start : start + chunk], first + start
        total = part.float()
        write(part.float(), (total,), name, key, terms, place)
        chance = sample("uniform", rounding, key, part.numel(), part.device, place)
        part.copy_(rounded(total, chance, part.dtype))


def rounded(values: Tensor, chance: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 ``values``, shape (n,), to a 16-bit dtype; the mean is ``values``.

    A value between two neighbours goes to the upper one (in magnitude) with probability equal to
    how far it stands above the lower: where that is above ``chance``, of the same shape, on
    [0, 1). Values of the dtype stay; overflow stays at the largest.
    """
    size = values.abs()
    near = size.to(dtype)
    bits = near.view(torch.int16)
    low_bits = bits - (near.to(values.dtype) > size).to(bits.dtype)
    low = low_bits.view(dtype).to(values.dtype)
    high = (low_bits + 1).view(dtype)
    up = (size - low) > chance * (high.to(values.dtype) - low)
    return torch.where(up, high, low_bits.view(dtype)).copysign(values.to(dtype))
