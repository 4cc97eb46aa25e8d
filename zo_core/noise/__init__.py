"""Noise added in place, by whichever kernel can: the one entrance for the rest of the engine.

The value that an element gets is a function of (distribution, seed, tensor name, place in the
tensor) alone. Kernels differ in speed, never in a bit; ``reference`` is their definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from zo_core.base import Copies, Distribution, Param, Params, Piece, Term, is_fake
from zo_core.noise import cpu, gpu, reference

Kernel = Literal["auto", "torch", "numba", "triton"]
"""Who computes: the fastest that can, the torch reference, or numba or triton and nothing else."""

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
    "prepared",
    "rounded",
    "scratch_bytes",
    "uniform",
    "write",
]


class _Kernel(Protocol):
    def __call__(
        self,
        source: Tensor,
        outs: Sequence[Tensor],
        name: str,
        key: int,
        terms: Sequence[Term],
        first: int = 0,
        threshold: float | None = None,
    ) -> None: ...


def add_(
    params: Sequence[Param],
    name: str,
    terms: Sequence[Term],
    kernel: Kernel = "auto",
    thresholds: Mapping[int, float] | None = None,
    rounding: int | None = None,
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
        thresholds: by key of the tensor; entries larger than it in magnitude keep their bits.
        rounding: seed of the bits by which 16-bit weights are rounded stochastically (see
            ``rounded``); there are no thresholds then.

    Raises:
        ValueError: numba was required and can't be used, or ``name`` is unknown.

    """
    _check(name)
    if not terms:
        return
    with torch.no_grad():
        if not isinstance(params, Params):
            _add_(params, name, terms, kernel, thresholds, rounding)
            return
        held = _held.pop(params, None)  # out, while it is in use
        usual = kernel == "auto" and rounding is None
        if held and usual and held.serves(params, name, thresholds):
            held.write(terms)
        else:
            write = _add_(params, name, terms, kernel, thresholds, rounding)
            bounds = None if thresholds is None else dict(thresholds)
            held = _Held(params.addresses, name, bounds, write) if write else None
    if held:
        _held[params] = held


class _Held(NamedTuple):
    """A pass over tensors that one call of the CPU kernel makes: it is the same in every step."""

    addresses: tuple[Any, ...]
    name: str
    thresholds: Mapping[int, float] | None
    write: Callable[[Sequence[Term]], None]

    def serves(self, params: Params, name: str, thresholds: Mapping[int, float] | None) -> bool:
        same = name == self.name and thresholds == self.thresholds
        return same and params.addresses == self.addresses


_held: WeakKeyDictionary[Params, _Held] = WeakKeyDictionary()


def _add_(
    params: Sequence[Param],
    name: str,
    terms: Sequence[Term],
    kernel: Kernel,
    thresholds: Mapping[int, float] | None,
    rounding: int | None,
) -> Callable[[Sequence[Term]], None] | None:
    """Do as ``add_``; return what does it again, if all of it was one call."""
    together: list[cpu.Flat] = []
    alone = rounding is not None
    for param in params:
        for part, first in _pieces(param.tensor.detach(), 0):
            flat = part.contiguous().view(-1)
            bound = None if thresholds is None else thresholds[param.key]
            pick = _pick(flat, kernel)
            stochastic = rounding is not None and flat.itemsize == 2
            if pick is cpu.write and not stochastic and part.is_contiguous():
                together.append(cpu.Flat(flat, (flat,), param.key, first, bound))
                continue
            alone = True
            if stochastic:
                write_rounded = (cpu if pick is cpu.write else reference).write_rounded
                write_rounded(flat, name, param.key, terms, rounding, first)
            else:
                pick(flat, (flat,), name, param.key, terms, first, bound)
            if not part.is_contiguous():
                part.copy_(flat.view(part.shape))
    write = cpu.prepared(together, name)
    write(terms)
    return None if alone else write


def write(
    piece: Piece,
    outs: Sequence[Tensor],
    name: str,
    terms: Sequence[Term],
    threshold: float | None = None,
) -> None:
    """Write a piece plus ``sum_k c_k noise(seed_k)`` elsewhere; minus it too, with two ``outs``.

    One pass, and one draw for both signs: of any length (``piece.part`` may be a whole tensor), so
    that weights can be perturbed as they are copied to where they are used. Same bits as ``add_``.

    Args:
        piece: what is read; (n,), contiguous.
        outs: one or two tensors of its shape and dtype, contiguous, apart from it.
        name: as for ``add_``.
        terms: (seed, coefficient) pairs.
        threshold: where the piece is larger in magnitude, it is copied as it is.

    """
    thresholds = None if threshold is None else {piece.param.key: threshold}
    prepared([(piece, outs)], name, thresholds)(terms)


def prepared(
    writes: Sequence[Copies], name: str, thresholds: Mapping[int, float] | None = None
) -> Callable[[Sequence[Term]], None]:
    """Return what does as ``write`` for many pieces, along given terms.

    In one call of the kernel for all that it takes. ``thresholds`` are by key of the tensor.
    """
    _check(name)
    flats = [
        cpu.Flat(
            piece.part.detach(),
            outs,
            piece.param.key,
            piece.first,
            None if thresholds is None else thresholds[piece.param.key],
        )
        for piece, outs in writes
    ]
    picked = [(_pick(flat.source, "auto"), flat) for flat in flats]
    together = cpu.prepared([flat for pick, flat in picked if pick is cpu.write], name)
    others = [(pick, flat) for pick, flat in picked if pick is not cpu.write]

    def write(terms: Sequence[Term]) -> None:
        with torch.no_grad():
            together(terms)
            for pick, (source, outs, key, first, bound) in others:
                pick(source, outs, name, key, terms, first, bound)

    return write


def _check(name: str) -> None:
    if name not in reference.LAWS:
        raise ValueError(f"Expected one of {', '.join(reference.LAWS)}, got '{name}'.")


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
    _pick(total, "auto")(total, (total,), name, piece.param.key, terms, piece.first)
    return total


def uniform(piece: Piece, seed: int) -> Tensor:
    """Return independent numbers on [0, 1) for the places of ``piece``, shape (n,), float32.

    Multiples of 2^-24, from a stream of their own: ``seed`` may be one that directions use.
    """
    total = torch.zeros_like(piece.part, dtype=torch.float32)
    terms = [Term(seed, 1.0)]
    _pick(total, "auto")(total, (total,), "uniform", piece.param.key, terms, piece.first)
    return total


def rounded(piece: Piece, values: Tensor, seed: int) -> Tensor:
    """Round float32 ``values``, shape (n,), stochastically to the 16-bit dtype of ``piece``.

    By random bits of ``seed`` and the places of ``piece``: those of ``add_(rounding=seed)``.
    """
    return reference.rounded(values, uniform(piece, seed), piece.part.dtype)


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
    """Bound what ``add_`` allocates, by what the reference does (numba: 40 KiB a thread).

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
    """Return the name of the kernel that "auto" takes on ``device``, and why that one.

    Where there is a GPU, the first question takes seconds: its kernel is compiled and tried.
    """
    if device.type not in ("cpu", "cuda"):
        return "torch", f"there is no kernel for {device.type}; the reference runs there"
    name, reason = _fastest(device)
    if reason is not None:
        return "torch", f"{reason} (far slower)"
    return name, f"compiled for this {'processor' if device.type == 'cpu' else 'GPU'}"


def _fastest(device: torch.device) -> tuple[str, str | None]:
    """Return the kernel for a CPU or a GPU, and why it can't be used, if so."""
    if device.type == "cuda":
        return "triton", gpu.available(device)
    return "numba", cpu.available()


def _pick(flat: Tensor, kernel: Kernel) -> _Kernel:
    if kernel == "torch":
        return reference.write
    taken = cpu.takes(flat) or gpu.takes(flat)
    name, reason = _fastest(flat.device) if taken else ("torch", None)
    if kernel not in ("auto", name):
        place = "a GPU" if kernel == "triton" else "the CPU"
        reason = f"it takes real float tensors on {place}, got {flat.dtype} on {flat.device}"
    if reason is not None and kernel != "auto":
        raise ValueError(f"kernel='{kernel}' can't be used: {reason}.")
    if reason is not None or not taken:
        return reference.write
    return gpu.write if name == "triton" else cpu.write


def _pieces(tensor: Tensor, first: int) -> Iterator[tuple[Tensor, int]]:
    """Cut ``tensor``, whose first element has place ``first``, into views to work on in turn."""
    if is_fake(tensor):
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
