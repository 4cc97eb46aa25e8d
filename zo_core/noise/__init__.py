"""Noise added in place, by whichever kernel can: the one entrance for the rest of the engine.

The value that an element gets is a function of (distribution, seed, tensor name, place in the
tensor) alone. Kernels differ in speed, never in a bit; ``reference`` is their definition.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor  # torch's only name for it

from zo_core.base import Distribution, Param, Piece, Term
from zo_core.noise import cpu, reference

Kernel = Literal["auto", "torch", "numba"]
"""Who computes: the fastest that can, the torch reference, or numba and nothing else."""

PIECE = 1 << 18
"""Elements that are worked on at a time on the CPU where more is done than adding noise: a few
temporaries of 1 MiB each stay inside the cache."""
DEVICE_PIECE = 1 << 22
"""The same elsewhere. A kernel on fewer elements is over before the next one is launched, so time
would go with the number of pieces; a temporary is 16 MiB."""

__all__ = [
    "DEVICE_PIECE",
    "PIECE",
    "Kernel",
    "add_",
    "add_by_pieces_",
    "borders",
    "draw",
    "kernel_in_use",
    "piece_bytes",
    "piece_of",
    "pieces",
    "scratch_bytes",
    "uniform",
]


class _Adder(Protocol):
    def __call__(
        self, flat: Tensor, name: str, key: int, terms: Sequence[Term], first: int = 0
    ) -> None: ...


def add_(
    params: Sequence[Param], name: str, terms: Sequence[Term], kernel: Kernel = "auto"
) -> None:
    """Add ``sum_k c_k noise(seed_k)`` to every tensor in place, in one pass over the weights.

    The place of an element in the stream is its index in row-major order, whatever the strides.
    The sum is formed in float32 (float64 for float64 weights), and rounded to the weights' dtype
    once. Autograd records nothing. Of a fake tensor as much is visited as is worked on at a time,
    which is all that a memory tracer needs.

    Args:
        params: the tensors; none is fine.
        name: "gaussian" or "rademacher" (or "uniform", on [0, 1), which is no direction).
        terms: (seed, coefficient) pairs; nothing happens where there are none.
        kernel: who computes.

    Raises:
        ValueError: numba was required and can't be used, or ``name`` is unknown.

    """
    if name not in reference.LAWS:
        raise ValueError(f"Expected one of {', '.join(reference.LAWS)}, got '{name}'.")
    if not terms:
        return
    with torch.no_grad():
        for param in params:
            for part, first in _pieces(param.tensor.detach(), 0):
                flat = part.contiguous().view(-1)
                _pick(flat, kernel)(flat, name, param.key, terms, first)
                if not part.is_contiguous():
                    part.copy_(flat.view(part.shape))


def piece_of(device: torch.device) -> int:
    """Return how many elements are worked on at a time on ``device``; no result hangs on it."""
    return PIECE if device.type == "cpu" else DEVICE_PIECE


def pieces(params: Iterable[Param]) -> Iterator[Piece]:
    """Walk all tensors in flat pieces of at most ``piece_of`` elements; what is written stays.

    A tensor that is not contiguous is copied a piece at a time. Of a fake tensor only the first
    elements are visited: one piece, or one sweep of ``add_`` where that is longer.
    """
    for param in params:
        size = piece_of(param.tensor.device)
        for part, first in _pieces(param.tensor.detach(), 0):
            flat = part.contiguous().view(-1)
            for start in range(0, flat.numel(), size):
                yield Piece(param, flat[start : start + size], first + start)
            if not part.is_contiguous():
                part.copy_(flat.view(part.shape))


def borders(param: Param) -> list[int]:
    """Return the first place of every piece of a tensor, rising; nothing is read or copied."""
    size = piece_of(param.tensor.device)
    return [
        first + start
        for part, first in _pieces(param.tensor.detach(), 0)
        for start in range(0, part.numel(), size)
    ]


def draw(piece: Piece, name: str, terms: Sequence[Term]) -> Tensor:
    """Return what ``add_`` would add to ``piece``, shape (n,), dtype ``piece.wide``."""
    total = torch.zeros_like(piece.part, dtype=piece.wide)
    _pick(total, "auto")(total, name, piece.param.key, terms, piece.first)
    return total


def uniform(piece: Piece, seed: int) -> Tensor:
    """Return independent numbers on [0, 1) for the places of ``piece``, shape (n,), float32.

    Multiples of 2^-24, from a stream of their own: ``seed`` may be one that directions use.
    """
    total = torch.zeros_like(piece.part, dtype=torch.float32)
    _pick(total, "auto")(total, "uniform", piece.param.key, [Term(seed, 1.0)], piece.first)
    return total


def add_by_pieces_(
    params: Sequence[Param], distribution: Distribution, terms: Sequence[Term]
) -> None:
    """Add ``sum_k c_k u(seed_k)`` of a distribution that knows how to ``draw`` it."""
    if not terms:
        return
    with torch.no_grad():
        for piece in pieces(params):
            piece.part.copy_(distribution.draw(piece, terms).add_(piece.part))


def scratch_bytes(params: Sequence[Param]) -> int:
    """Bound what ``add_`` allocates, by what the reference does (numba: 26 KiB a thread).

    A tensor that is not contiguous costs a copy of at most ``piece_of`` of its elements as well.
    """
    strided = [p.tensor for p in params if not p.tensor.is_contiguous()]
    copy = max((_piece_elements(t) * t.element_size() for t in strided), default=0)
    return copy + max(reference.scratch_bytes(p.tensor.numel(), p.tensor.device) for p in params)


def piece_bytes(params: Sequence[Param], numbers: int) -> int:
    """Bound the scratch of work by pieces that holds ``numbers`` wide numbers an element."""
    widest = max(8 if p.tensor.dtype == torch.float64 else 4 for p in params)
    return numbers * widest * max(_piece_elements(p.tensor) for p in params)


def _piece_elements(tensor: Tensor) -> int:
    return min(tensor.numel(), piece_of(tensor.device))


def kernel_in_use(device: torch.device) -> tuple[str, str]:
    """Return the name of the kernel that "auto" takes on ``device``, and why that one."""
    if device.type != "cpu":
        return "torch", f"there is no kernel for {device.type} yet; the reference runs there"
    reason = cpu.available()
    if reason is not None:
        return "torch", f"{reason} (far slower)"
    return "numba", "compiled for this processor"


def _pick(flat: Tensor, kernel: Kernel) -> _Adder:
    if kernel == "torch":
        return reference.add_
    possible = cpu.takes(flat)
    reason = cpu.available() if possible else _refusal(flat)
    if reason is None:
        return cpu.add_
    if kernel == "numba":
        raise ValueError(f"kernel='numba' can't be used: {reason}.")
    return reference.add_


def _refusal(flat: Tensor) -> str:
    return f"it takes real float tensors on the CPU, got {flat.dtype} on {flat.device}"


def _pieces(tensor: Tensor, first: int) -> Iterator[tuple[Tensor, int]]:
    """Cut ``tensor``, whose first element has place ``first``, into views to work on in turn."""
    if tensor.is_meta or isinstance(tensor, FakeTensor):
        part, _ = next(_views(tensor, first))
        longest = max(reference.chunk_of(tensor.device), piece_of(tensor.device))
        yield (part.view(-1)[:longest] if part.is_contiguous() else part), first
    else:
        yield from _views(tensor, first)


def _views(tensor: Tensor, first: int) -> Iterator[tuple[Tensor, int]]:
    size = piece_of(tensor.device)
    if tensor.is_contiguous() or tensor.numel() <= size:
        yield tensor, first
        return
    row = math.prod(tensor.shape[1:])
    if row > size:
        for i, part in enumerate(tensor):
            yield from _views(part, first + i * row)
    else:
        for start in range(0, len(tensor), size // row):
            yield tensor[start : start + size // row], first + start * row
