"""The k-th smallest |theta| of a tensor, exactly, without a copy of it.

Magnitudes of IEEE numbers are ordered as their bits are, read as integers. So a histogram of the
upper 16 bits tells in which bin the k-th one stands, a second one within that bin its lower 16
bits: one pass for 16-bit weights, two for float32, four for float64. ``torch.kthvalue`` copies the
tensor; ``torch.quantile`` refuses one of more than 2^24 elements.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zo_core import noise
from zo_core.base import Param, Params, is_fake

_INTEGERS = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
_DIGIT = 16
_BINS = 1 << _DIGIT


def count_of(fraction: float, elements: int) -> int:
    """Return how many of ``elements`` a fraction is, rounded up: at least one of any tensor."""
    return max(1, math.ceil(round(fraction * elements, 6)))  # 0.1 * 30 is 3.0000000000000004


def check_fraction(fraction: float) -> None:
    """Refuse what selects nothing, or more than there is."""
    if not 0 < fraction <= 1:
        raise ValueError(
            f"trained_fraction must be above 0 and at most 1, got {fraction}. It is the share "
            "that is trained: a paper's sparsity of 0.75 is trained_fraction = 0.25."
        )


def kth_magnitude(param: Param, k: int) -> float:
    """Return the ``k``-th smallest (from 1) absolute value of a tensor, a value of its dtype.

    Costs one pass over the tensor for every 16 bits of its dtype; scratch as ``scratch_bytes``.
    Of a fake tensor, which has no values, it is infinity.
    """
    tensor = param.tensor
    if is_fake(tensor):
        return math.inf
    integers = _INTEGERS[tensor.dtype]
    prefix = 0
    for shift in range(8 * tensor.itemsize - _DIGIT, -1, -_DIGIT):
        below = _histogram(param, integers, prefix, shift).cumsum(0)
        digit = int(torch.searchsorted(below, k))
        k -= int(below[digit - 1]) if digit else 0
        prefix = (prefix << _DIGIT) | digit
    return float(torch.tensor(prefix, dtype=integers).view(tensor.dtype))


def scratch_bytes(params: Params) -> int:
    """Bound what ``kth_magnitude`` allocates: a few pieces, and three histograms."""
    return noise.piece_bytes(params, 5) + 3 * 8 * (_BINS + 1)


def _histogram(param: Param, integers: torch.dtype, prefix: int, shift: int) -> Tensor:
    """Count the digits at ``shift`` among magnitudes whose upper bits are ``prefix``, (2^16,)."""
    total = torch.zeros(_BINS + 1, dtype=torch.int64, device=param.tensor.device)
    for piece in noise.pieces((param,)):
        bits = piece.part.view(integers) & torch.iinfo(integers).max  # without the sign
        digit = bits >> shift
        if shift + _DIGIT < 8 * param.tensor.itemsize:
            elsewhere = digit >> _DIGIT != prefix
            digit = (digit & (_BINS - 1)).masked_fill_(elsewhere, _BINS)
        total += torch.bincount(digit, minlength=_BINS + 1)
    return total[:_BINS]
