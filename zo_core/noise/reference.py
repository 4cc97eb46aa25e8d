"""From random words to noise, in plain torch: the oracle that every kernel must agree with.

Only integer operations and the IEEE float32 operations ``+ - * sqrt``, each rounded once and never
contracted, are used. They give the same bits on every device, so kernels agree *to the bit*.

Element ``e`` of a tensor and its words (see ``philox`` for the layout of a block):

- ``gaussian``: block ``e // 256``. Words 0 and 1 of a lane make the elements at the places of
  words 0 and 1, words 2 and 3 the other two (Box and Muller, 1958): exact tails to 6.66 sigma.
- ``rademacher``: one bit an element. Block ``e // 8192``; bit ``k`` of word ``i`` belongs to
  element ``k * 256 + i`` of the block, and says that the sign is minus.
- ``uniform``: block ``e // 256``, the word at the element's own place; its upper 24 bits are a
  number on [0, 1). Not a direction: it decides masks and roundings, from the seed's complement.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zo_core.base import Term
from zo_core.noise.philox import WORDS, words

CHUNK = 1 << 16
"""Elements per sweep on the CPU: scratch stays below 3.2 MiB, inside the cache."""
DEVICE_CHUNK = 1 << 20
"""Elements per sweep elsewhere: launches cost more than memory there; scratch is 44 MiB."""

_BITS = 32

# ln(1 + f) = f - f^2/2 + f^3 P(f) on [sqrt(1/2) - 1, sqrt(2) - 1]: Cephes logf (Moshier, 1989).
LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
LN2 = 0.69314718056
# sin(a) = a + a^3 S(a^2), cos(a) = 1 - a^2/2 + a^4 C(a^2) on [-pi/4, pi/4]: Cephes sinf and cosf.
SIN = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COS = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
ANGLE = 2.0**-32 * math.pi / 2
SQRT_HALF_BITS = 0x3F3504F4  # of the first float32 above the square root of 1/2


def _polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    out = x * coefficients[0] + coefficients[1]
    for c in coefficients[2:]:
        out = out * x + c
    return out


def _minus_two_ln(word: Tensor) -> Tensor:
    """Return -2 ln(v / 2^32), float32, where v is ``word`` made odd: 0 < v < 2^32."""
    bits = (word | 1).float().view(torch.int32)
    exponent = (bits - SQRT_HALF_BITS) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0  # v = 2^exponent (1 + f)
    square = f * f
    log = (_polynomial(f, LOG) * f) * square - 0.5 * square + f
    return ((exponent - 32).float() * LN2 + log) * -2.0


def _sqrt(x: Tensor) -> Tensor:
    # torch.sqrt of float32 goes through MKL and is an ulp off in one case of six on some CPUs. In
    # float64 an ulp is 2^-29 of a float32 ulp, and no root comes within 2^-27 of one to a tie: the
    # rounded result is the IEEE one even where MKL's float64 is not.
    return x.double().sqrt().float()


def _box_muller(word: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    """Return two independent standard normals from two words, float32.

    The upper 30 bits of ``angle`` give an angle in [-pi/4, pi/4); bit 0 mirrors it, bit 1 swaps
    the axes: together, every direction of the plane.
    """
    radius = _sqrt(_minus_two_ln(word))
    signed = ((angle & 0xFFFFFFFC) ^ 0x80000000) - 0x80000000  # as int32
    a = signed.float() * ANGLE
    square = a * a
    sin = (_polynomial(square, SIN) * square) * a + a
    cos = (_polynomial(square, COS) * square) * square - 0.5 * square + 1.0
    cos = torch.where((angle & 1) == 1, -cos, cos)
    swap = (angle & 2) == 2
    return radius * torch.where(swap, sin, cos), radius * torch.where(swap, cos, sin)


def _gaussian(seed: int, key: int, first: int, blocks: int, device: torch.device) -> Tensor:
    w0, w1, w2, w3 = words(seed, key, first, blocks, device).unbind(1)
    z0, z1 = _box_muller(w0, w1)
    z2, z3 = _box_muller(w2, w3)
    return torch.stack([z0, z1, z2, z3], dim=1).view(-1)


def _rademacher(seed: int, key: int, first: int, blocks: int, device: torch.device) -> Tensor:
    w = words(seed, key, first, blocks, device).view(blocks, 1, WORDS)
    bit = torch.arange(_BITS, device=device).view(1, _BITS, 1)
    return (1 - 2 * ((w >> bit) & 1)).view(-1).float()


def _uniform(seed: int, key: int, first: int, blocks: int, device: torch.device) -> Tensor:
    return (words(~seed, key, first, blocks, device).view(-1) >> 8).float() * 2.0**-24


_Sampler = Callable[[int, int, int, int, torch.device], Tensor]
_SAMPLERS: dict[str, tuple[_Sampler, int]] = {  # and the elements of a block
    "gaussian": (_gaussian, WORDS),
    "rademacher": (_rademacher, WORDS * _BITS),
    "uniform": (_uniform, WORDS),
}
LAWS = tuple(_SAMPLERS)


def chunk_of(device: torch.device) -> int:
    """Return how many elements ``add_`` sweeps at a time on ``device``."""
    return CHUNK if device.type == "cpu" else DEVICE_CHUNK


def scratch_bytes(count: int, device: torch.device) -> int:
    """Bound what ``add_`` allocates for ``count`` elements: 44 bytes for each of a sweep."""
    return 44 * (min(count, chunk_of(device)) + WORDS * _BITS)


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


def add_(
    flat: Tensor, name: str, key: int, terms: Sequence[Term], first: int = 0, chunk: int = 0
) -> None:
    """Add ``sum_k c_k noise(seed_k)`` to ``flat`` in place, elements ``first ...`` of the stream.

    The products and their sum (from zero, in the order of ``terms``) are float32, or float64 for
    float64 weights; the result is rounded to the dtype of ``flat`` once, to nearest, ties to even.

    Args:
        flat: shape (n,), floating point.
        name: "gaussian" or "rademacher".
        key: the tensor's key.
        terms: (seed, coefficient) pairs.
        first: place of ``flat[0]`` in the stream.
        chunk: elements per sweep; what suits the device where it is 0.

    """
    wide = torch.float64 if flat.dtype == torch.float64 else torch.float32
    chunk = chunk or chunk_of(flat.device)
    for start in range(0, flat.numel(), chunk):
        part = flat[start : start + chunk]
        total = torch.zeros(part.shape, dtype=wide, device=part.device)
        for term in terms:
            z = sample(name, term.seed, key, part.numel(), part.device, first + start)
            total += z.to(wide) * torch.tensor(term.coefficient, dtype=wide)
        part.copy_(part.to(wide) + total)
