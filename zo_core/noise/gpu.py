"""The GPU kernel: what decides whether it runs, and what launches it.

Triton comes with torch where torch is built for a GPU, so there is nothing more to install. It
compiles on the first call, which takes seconds, and keeps the machine code on disk from then on.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from zo_core.base import Term
from zo_core.noise import quantile, reference
from zo_core.noise.stream import LANES, STEPS

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_WORD = 1 << 32


class _Shape(NamedTuple):
    """How a law is cut up; see ``triton_kernels.write``. Speed hangs on it, no bit does."""

    rows: int  # of a tile
    group: int  # steps that a tile takes
    span: int  # tiles that a program writes

    @property
    def tiles(self) -> int:  # in a block
        return STEPS // self.group

    @property
    def unit(self) -> int:  # elements of a block
        return self.tiles * self.rows * LANES


_SHAPES = {
    "gaussian": _Shape(rows=8, group=4, span=8),
    "rademacher": _Shape(rows=32, group=1, span=8),
    "uniform": _Shape(rows=4, group=4, span=8),
}
OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}
"""How triton compiles it. A tile is one warp's, so that nothing is passed between warps; and a
product is rounded before it is added to, as everywhere else."""


def takes(flat: Tensor) -> bool:
    """Whether ``flat`` is a real (not fake) contiguous tensor on a GPU, of a known dtype."""
    return (
        type(flat) in (Tensor, torch.nn.Parameter)
        and flat.device.type == "cuda"
        and flat.dtype in _DTYPES
        and flat.is_contiguous()
    )


@functools.cache
def available(device: torch.device) -> str | None:
    """Return None where the kernel runs on ``device`` and gives the right bits, else why not.

    The first call for a device compiles the kernel and compares a stretch of noise with the
    reference: a compiler that contracts or reorders would change every direction without a word.
    """
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if find_spec("triton") is None:
        return "triton is not installed; torch for GPUs brings it, else pip install triton"
    try:
        wrong = mismatches(device)
    except torch.OutOfMemoryError:  # says nothing about the kernel
        raise
    except Exception as error:  # an old GPU, driver or triton, or no C compiler: in many ways
        return f"triton fails ({type(error).__name__}: {(str(error).splitlines() or [''])[0]})"
    return f"triton's bits differ from the reference's in {wrong} elements" if wrong else None


def mismatches(device: torch.device) -> int:
    """Count the elements that differ from the reference's in a stretch with a tail in it."""
    start = torch.linspace(-1, 1, 3000, device=device)
    ours, right = torch.empty_like(start), torch.empty_like(start)
    stream = ("gaussian", 7, [Term(45, 1e-3)], 77)  # element 599 is 4.98
    write(start, [ours], *stream)
    reference.write(start, [right], *stream)
    return int((ours.view(torch.int32) != right.view(torch.int32)).sum())


def write(
    source: Tensor,
    outs: Sequence[Tensor],
    name: str,
    key: int,
    terms: Sequence[Term],
    first: int = 0,
    threshold: float | None = None,
) -> None:
    """Write ``source`` plus (and minus) ``sum_k c_k noise(seed_k)``, as ``reference.write`` does.

    One launch on the current stream, and no wait for it. Allocates 12 bytes a term, and 1.3 KiB
    once. One of several terms takes about 1.7 times the instructions of one alone; why, see
    ``triton_kernels.write``.
    """
    if not source.numel():
        return
    with _on(source.device):
        launch(source, outs, name, key, terms, first, threshold)
    for out in outs:
        torch.autograd.graph.increment_version(out)


def launch(
    source: Tensor,
    outs: Sequence[Tensor],
    name: str,
    key: int,
    terms: Sequence[Term],
    first: int = 0,
    threshold: float | None = None,
) -> object:
    """Do as ``write`` on the current device, and return what triton compiled for it."""
    shape = _SHAPES[name]
    block, skip = divmod(first, shape.unit)
    blocks = -(-(skip + source.numel()) // shape.unit)
    source, *outs = (_as_loaded(t) for t in (source, *outs))
    return _kernels().write[(blocks * (shape.tiles // shape.span),)](
        source,
        outs[0],
        outs[-1],
        _in_memory(tuple(terms), source.device, _stream(source.device)),
        _quantiles(source.device),
        len(terms),
        0 if threshold is None else _bits(threshold),
        skip,
        *_words(block),
        *_words(source.numel()),
        *_words(key),
        **constants(name, len(outs) == 2, threshold is not None, len(terms) == 1),
        **OPTIONS,
    )


def constants(name: str, both: bool, small: bool, single: bool) -> dict[str, int | bool]:
    """Return what is fixed when the kernel is compiled; see ``triton_kernels.write``."""
    shape = _SHAPES[name]
    return {
        "LAW": _kernels().LAWS.index(name),
        "BOTH": both,
        "SMALL": small,
        "SINGLE": single,
        "ROWS": shape.rows,
        "GROUP": shape.group,
        "TILES": shape.tiles,
        "SPAN": shape.span,
    }


def _as_loaded(flat: Tensor) -> Tensor:
    flat = flat.detach()
    return flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat


def _words(number: int) -> tuple[int, int]:
    """Return the lower and upper word of 64 bits, each as the int32 that has its bits."""
    low, high = number % _WORD, (number // _WORD) % _WORD
    return (low ^ _WORD // 2) - _WORD // 2, (high ^ _WORD // 2) - _WORD // 2


def _bits(number: float) -> int:
    """Return the bits of ``number`` rounded to float32, as int32."""
    return int(torch.tensor(number, dtype=torch.float32).view(torch.int32))


@functools.lru_cache(maxsize=16)
def _in_memory(terms: tuple[Term, ...], device: torch.device, stream: int) -> Tensor:
    """Return the terms where the kernel reads them; the tensors of one pass share them.

    Copied on ``stream`` from pinned memory, so nobody waits; what is in use there alone can be
    freed at any time, as memory is handed on in the order of the stream.
    """
    words = [[*_words(t.seed), _bits(t.coefficient)] for t in terms]
    table = torch.tensor(words, dtype=torch.int32, pin_memory=device.type == "cuda")
    return table.to(device, non_blocking=True)


@functools.cache
def _quantiles(device: torch.device) -> Tensor:
    """Return both tables, each with the coefficients of one power side by side."""
    tables = [torch.tensor(t, dtype=torch.float32).t() for t in (quantile.BODY, quantile.TAIL)]
    return torch.cat([t.flatten() for t in tables]).to(device)


def _stream(device: torch.device) -> int:
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0


def _on(device: torch.device) -> AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _kernels() -> ModuleType:
    """Import triton and the kernel now: about a second, on the first call."""
    from zo_core.noise import triton_kernels

    return triton_kernels
