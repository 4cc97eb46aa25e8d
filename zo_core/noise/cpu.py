"""The CPU kernel: the noise of ``reference``, to the bit, some two hundred times as fast.

Compiled by numba, an optional dependency, on the first call and kept on disk from then on. The
work is cut into ranges for as many threads as torch has; a range is a function of the stream and
of nothing else, so the result does not depend on how many there are.
"""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from zo_core.base import Term
from zo_core.noise import team
from zo_core.noise.stream import WORDS

if TYPE_CHECKING:
    import numpy as np

_ALIGN = 32 * WORDS  # ranges start where a block starts, whatever the law
_ALONE = 1 << 18  # elements that a thread finishes sooner (0.1 ms) than it hands them over
_TURNS = 4  # that a thread has, so that none waits long for one that came late
_MASK = (1 << 64) - 1


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


@functools.cache
def _dtypes() -> tuple[torch.dtype, ...]:
    always = (torch.float32, torch.bfloat16, torch.float64)
    if available() is None and not _kernels().halves():
        return always
    return (*always, torch.float16)


def takes(flat: Tensor) -> bool:
    """Whether ``flat`` is a real (not fake, not meta) contiguous CPU tensor of a known dtype."""
    return (
        type(flat) in (Tensor, torch.nn.Parameter)
        and flat.device.type == "cpu"
        and flat.dtype in _dtypes()
        and flat.is_contiguous()
    )


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

    Scratch is 40 KiB a thread. Runs on ``torch.get_num_threads()`` threads without the GIL.
    """
    if source.dtype == torch.float64:
        _write_float64(source, outs, name, key, terms, first, threshold)
    else:
        _write([Flat(source, outs, key, first, threshold)], name, terms)


def _write_float64(
    source: Tensor,
    outs: Sequence[Tensor],
    name: str,
    key: int,
    terms: Sequence[Term],
    first: int,
    threshold: float | None,
) -> None:
    kernel, stream = _kernels().write_float64, _stream(name, key, terms, source.dtype)
    bound = None if threshold is None else stream.wide(threshold)
    arrays = tuple(_array(t) for t in (source, *outs))

    def work(low: int, high: int) -> None:
        part, *parts = (a[low:high] for a in arrays)
        kernel(part, tuple(parts), bound, stream.law, first + low, *stream.rest)

    _run(work, _ranges(source.numel(), first, torch.get_num_threads()))
    for out in outs:
        torch.autograd.graph.increment_version(out)


class Flat(NamedTuple):
    """What ``write`` does for one tensor of shape (n,): see there."""

    source: Tensor
    outs: Sequence[Tensor]
    key: int
    first: int  # place of its first element
    threshold: float | None


def add_(flats: Sequence[Flat], name: str, terms: Sequence[Term]) -> None:
    """Write many tensors, ``takes`` holds for each, in as few calls as there are kinds of them."""
    kinds: dict[tuple[Any, ...], list[Flat]] = {}
    for flat in flats:
        kind = flat.source.dtype, len(flat.outs), flat.threshold is None
        kinds.setdefault(kind, []).append(flat)
    for (dtype, *_), some in kinds.items():
        if dtype == torch.float64:
            for source, outs, key, first, threshold in some:
                _write_float64(source, outs, name, key, terms, first, threshold)
        else:
            _write(some, name, terms)


def _write(flats: Sequence[Flat], name: str, terms: Sequence[Term]) -> None:
    """Write tensors that share dtype and number of outs, all with a threshold or none."""
    import numpy as np

    kernels, one = _kernels(), flats[0]
    total = sum(flat.source.numel() for flat in flats)
    threads = max(1, min(torch.get_num_threads(), total // _ALONE))
    longest = max(1, total) if threads == 1 else max(_ALONE // 2, total // (_TURNS * threads))
    rows = [row for flat in flats for row in _rows(flat, longest)]
    seeds = [term.seed & _MASK for term in terms]
    bits = np.array([term.coefficient for term in terms], np.float32).view(np.uint32).tolist()
    numbers = [*itertools.chain.from_iterable(rows), *seeds, *bits]
    head = [0, 0, len(numbers) + kernels.HEAD, len(rows), kernels.LAWS[name], len(terms)]
    job, like = np.array([*head, *numbers], np.uint64), _array(one.source[:0])
    two, bounded = len(one.outs) == 2 or None, one.threshold is not None or None
    kernel = None
    if team.possible():  # loaded at the first call, however small: a measured run begins with one
        kernel = kernels.team_of(like.dtype.type, two is not None, bounded is not None)
    if kernel is not None and threads > 1 and team.available():
        # OpenMP ends threads that a smaller team has no place for; torch would start them anew.
        team.run(kernel.address, job.ctypes.data, torch.get_num_threads())
        _check_done(int(job[kernels.DONE]), len(rows))
    else:
        alive = [t.detach() for flat in flats for t in (flat.source, *flat.outs)]

        def work(*_: int) -> None:
            if alive:  # why: a job holds addresses, and this may outlive an interrupted caller
                kernels.write_rows(job, like, two, bounded)

        _run(work, [(0, 0)] * threads)
    torch.autograd.graph.increment_version([out for flat in flats for out in flat.outs])


def _check_done(done: int, rows: int) -> None:
    if done != rows:
        raise MemoryError(
            f"Expected {rows} pieces of weights to be perturbed, got {done}: the noise kernel had "
            "no room for its scratch. Free some memory, and load the weights anew."
        )


def _rows(flat: Flat, longest: int) -> Iterator[tuple[int, ...]]:
    """Cut a tensor to rows of ``write_rows`` of about ``longest`` elements."""
    import numpy as np

    source, outs, key, first, threshold = flat
    count, item = source.numel(), source.itemsize
    starts = [source.data_ptr(), outs[0].data_ptr(), outs[-1].data_ptr()]
    bits = 0 if threshold is None else int(np.float32(threshold).view(np.uint32))
    cuts = range(longest, count - longest // 2, longest)
    for low, high in itertools.pairwise([0, *_aligned(cuts, first), count]):
        if low < high:
            places = (start + low * item for start in starts)
            yield (*places, high - low, first + low, key & _MASK, bits)


def _aligned(cuts: Sequence[int], first: int) -> list[int]:
    """Move cuts of a tensor, whose first place is ``first``, back to where a block begins."""
    return [max(0, (first + cut) // _ALIGN * _ALIGN - first) for cut in cuts]


def write_rounded(
    flat: Tensor, name: str, key: int, terms: Sequence[Term], rounding: int, first: int = 0
) -> None:
    """Add ``sum_k c_k noise(seed_k)`` to 16-bit ``flat``, as ``reference.write_rounded`` does."""
    import numpy as np

    kernels, stream, weights = _kernels(), _stream(name, key, terms, flat.dtype), _array(flat)
    seed = np.uint64(rounding & _MASK)

    def work(low: int, high: int) -> None:
        kernels.write_rounded(weights[low:high], seed, stream.law, first + low, *stream.rest)

    _run(work, _ranges(flat.numel(), first, torch.get_num_threads()))
    torch.autograd.graph.increment_version(flat)


class _Stream(NamedTuple):
    """What every kernel takes: the law's number, and key, seeds and coefficients."""

    law: int
    wide: Any
    rest: tuple[Any, ...]


def _stream(name: str, key: int, terms: Sequence[Term], dtype: torch.dtype) -> _Stream:
    import numpy as np

    wide = np.float64 if dtype == torch.float64 else np.float32
    seeds = np.array([t.seed & _MASK for t in terms], dtype=np.uint64)
    coefficients = np.array([t.coefficient for t in terms], dtype=wide)
    return _Stream(_kernels().LAWS[name], wide, (np.uint64(key & _MASK), seeds, coefficients))


def _array(flat: Tensor) -> np.ndarray[Any, Any]:
    """Return the memory of ``flat``, typed as ``vector.DTYPES`` says."""
    import numpy as np

    data = flat.detach()
    if data.dtype == torch.bfloat16:
        return data.view(torch.int16).numpy().view(np.uint16)
    return (data.view(torch.int16) if data.dtype == torch.float16 else data).numpy()


def _ranges(count: int, first: int, threads: int) -> list[tuple[int, int]]:
    """Cut ``count`` elements from place ``first`` on into at most ``threads`` ranges."""
    pieces = max(1, min(threads, count // _ALONE))
    cuts = [count * i // pieces for i in range(1, pieces)]
    edges = [0, *_aligned(cuts, first), count]
    return [(low, high) for low, high in itertools.pairwise(edges) if low < high]


def _run(work: Callable[[int, int], None], ranges: Sequence[tuple[int, int]]) -> None:
    if len(ranges) < 2:
        for low, high in ranges:
            work(low, high)
        return
    pool = _pool(torch.get_num_threads() - 1, os.getpid())
    others = [pool.submit(work, low, high) for low, high in ranges[1:]]
    try:
        work(*ranges[0])
    finally:  # why: the caller may give back memory that they write to
        concurrent.futures.wait(others)
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
