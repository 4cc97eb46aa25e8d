"""The CPU kernel: the noise of ``reference``, to the bit, some fifty times as fast.

Compiled by numba, an optional dependency, on the first call and kept on disk from then on. The
work is cut into ranges for as many threads as torch has; a range is a function of the stream and
of nothing else, so the result does not depend on how many there are.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from zo_core.base import Term
from zo_core.noise.philox import WORDS

_ALIGN = 32 * WORDS  # ranges start where a block starts, whatever the law
_ALONE = 1 << 17  # elements that a thread finishes sooner (0.1 ms) than it hands them over
_MASK = (1 << 64) - 1
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@functools.cache
def available() -> str | None:
    """Return None where the kernel can be used, else why not, in one line."""
    if find_spec("numba") is None:
        return "numba is not installed; pip install 'zometer[fast]'"
    try:
        _kernels()
    except Exception as error:  # a broken or mismatched installation fails in many ways
        return f"numba does not load ({type(error).__name__}: {str(error).splitlines()[0]})"
    return None


def takes(flat: Tensor) -> bool:
    """Whether ``flat`` is a real (not fake, not meta) contiguous CPU tensor of a known dtype."""
    return (
        type(flat) in (Tensor, torch.nn.Parameter)
        and flat.device.type == "cpu"
        and flat.dtype in _DTYPES
        and flat.is_contiguous()
    )


def add_(flat: Tensor, name: str, key: int, terms: Sequence[Term], first: int = 0) -> None:
    """Add ``sum_k c_k noise(seed_k)`` to ``flat`` in place, as ``reference.add_`` does.

    Scratch is 26 KiB a thread. Runs on ``torch.get_num_threads()`` threads without the GIL.

    Args:
        flat: shape (n,); ``takes`` must hold.
        name: "gaussian" or "rademacher".
        key: the tensor's key.
        terms: (seed, coefficient) pairs.
        first: place of ``flat[0]`` in the stream.

    """
    import numpy as np

    kernels = _kernels()
    law = kernels.LAWS[name]
    wide = np.float64 if flat.dtype == torch.float64 else np.float32
    seeds = np.array([t.seed & _MASK for t in terms], dtype=np.uint64)
    coefficients = np.array([t.coefficient for t in terms], dtype=wide)
    data = flat.detach()
    weights = (data.view(torch.int16) if data.itemsize == 2 else data).numpy()
    if data.itemsize == 2:
        weights = weights.view(np.uint16)
    kernel = {torch.bfloat16: kernels.add_bfloat16, torch.float16: kernels.add_float16}.get(
        flat.dtype, kernels.add_float
    )

    def work(low: int, high: int) -> None:
        kernel(weights[low:high], law, first + low, np.uint64(key & _MASK), seeds, coefficients)

    _run(work, _ranges(flat.numel(), first, torch.get_num_threads()))
    torch.autograd.graph.increment_version(flat)


def _ranges(count: int, first: int, threads: int) -> list[tuple[int, int]]:
    """Cut ``count`` elements from place ``first`` on into at most ``threads`` ranges."""
    pieces = max(1, min(threads, count // _ALONE))
    cuts = [(first + count * i // pieces) // _ALIGN * _ALIGN - first for i in range(1, pieces)]
    edges = [0, *cuts, count]
    return [(low, high) for low, high in itertools.pairwise(edges) if low < high]


def _run(work: Callable[[int, int], None], ranges: Sequence[tuple[int, int]]) -> None:
    if len(ranges) < 2:
        for low, high in ranges:
            work(low, high)
        return
    pool = _pool(torch.get_num_threads() - 1, os.getpid())
    others = [pool.submit(work, low, high) for low, high in ranges[1:]]
    work(*ranges[0])
    for future in others:
        future.result()


@functools.lru_cache(maxsize=1)
def _pool(workers: int, process: int) -> ThreadPoolExecutor:
    """Keep the helpers of this thread; a forked child (another ``process``) gets its own."""
    return ThreadPoolExecutor(workers, thread_name_prefix="zo-noise")


def _kernels() -> ModuleType:
    """Import numba and the kernels now: about a second, and some 100 MiB, on the first call."""
    from zo_core.noise import cpu_kernels

    return cpu_kernels
