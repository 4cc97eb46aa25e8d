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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
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
_LEAST = 1 << 13  # elements that take as long as a tensor does however small it is
TURNS = 4
"""That a thread has at a job, so that none waits long for one that came late."""
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
    prepared([Flat(source, outs, key, first, threshold)], name)(terms)


def _write_float64(flat: Flat, name: str, terms: Sequence[Term]) -> None:
    source, outs, key, first, threshold = flat
    kernel, stream = _kernels().write_float64, _stream(name, key, terms, source.dtype)
    bound = None if threshold is None else stream.wide(threshold)
    arrays = tuple(_array(t) for t in (source, *outs))

    def work(low: int, high: int) -> None:
        part, *parts = (a[low:high] for a in arrays)
        kernel(part, tuple(parts), bound, stream.law, first + low, *stream.rest)

    _run(work, _ranges(source.numel(), first, torch.get_num_threads()))
    torch.autograd.graph.increment_version(outs)


class Flat(NamedTuple):
    """What ``write`` does for one tensor of shape (n,): see there."""

    source: Tensor
    outs: Sequence[Tensor]
    key: int
    first: int  # place of its first element
    threshold: float | None


def prepared(flats: Sequence[Flat], name: str) -> Callable[[Sequence[Term]], None]:
    """Return what writes many tensors, ``takes`` holds for each, along given terms.

    In as few calls as there are kinds of them. What is made ready here (where they lie, and how
    they are cut) takes about as long as the noise of a small layer.
    """
    kinds: dict[tuple[Any, ...], list[Flat]] = {}
    for flat in flats:
        kind = flat.source.dtype, len(flat.outs), flat.threshold is None
        kinds.setdefault(kind, []).append(flat)
    jobs: list[Callable[[Sequence[Term]], None]] = []
    for (dtype, *_), some in kinds.items():
        if dtype == torch.float64:
            jobs += [partial(_write_float64, flat, name) for flat in some]
        else:
            jobs.append(_Job(some, name))

    def write(terms: Sequence[Term]) -> None:
        for job in jobs:
            job(terms)

    return write


class _Job:
    """Writing of tensors that share dtype and number of outs, all with a threshold or none."""

    def __init__(self, flats: Sequence[Flat], name: str) -> None:
        self._flats, self._name, one = flats, name, flats[0]
        self._outs = [out for flat in flats for out in flat.outs]
        self._like = _array(one.source[:0])
        self._two, self._bounded = len(one.outs) == 2 or None, one.threshold is not None or None
        self._work = sum(max(flat.source.numel(), _LEAST) for flat in flats)
        self._made: tuple[tuple[int, ...], np.ndarray[Any, Any]] | None = None

    def __call__(self, terms: Sequence[Term]) -> None:
        work = self._work
        threads = _threads(work)
        longest = work if threads == 1 else max(_ALONE // 2, work // (TURNS * threads))
        job = self._job(longest, terms)
        _do(job, self._like, self._two, self._bounded, threads, self._flats)
        torch.autograd.graph.increment_version(self._outs)

    def _job(self, longest: int, terms: Sequence[Term]) -> np.ndarray[Any, Any]:
        """Return the numbers of ``write_rows``; but for the terms they are those of last time."""
        outs = (out.data_ptr() for out in self._outs)  # memory may have been given back meanwhile
        asked = longest, len(terms), *outs
        if self._made is None or self._made[0] != asked:
            self._made = asked, _numbers(_rows(self._flats, longest), self._name, len(terms))
        _along(self._made[1], terms)
        return self._made[1]


def write_rows(
    matrix: Tensor,
    rows: Tensor,
    outs: Sequence[Tensor],
    name: str,
    key: int,
    terms: Sequence[Term],
    threshold: float | None,
) -> None:
    """Do as ``rows.write`` for a matrix that ``takes`` holds for, of 16 or 32 bits."""
    import numpy as np

    wanted, columns = rows.detach().contiguous().numpy(), matrix.shape[1]
    first, item = wanted.astype(np.uint64) * np.uint64(columns), np.uint64(matrix.itemsize)
    at = np.arange(len(wanted), dtype=np.uint64) * np.uint64(columns) * item
    numbers = np.empty((len(wanted), _kernels().ROW), np.uint64)
    numbers[:, 0] = np.uint64(matrix.data_ptr()) + first * item
    numbers[:, 1] = np.uint64(outs[0].data_ptr()) + at
    numbers[:, 2] = np.uint64(outs[-1].data_ptr()) + at
    numbers[:, 3], numbers[:, 4], numbers[:, 5] = columns, first, key & _MASK
    numbers[:, 6] = 0 if threshold is None else _bits(threshold)
    job = _numbers(numbers, name, len(terms))
    _along(job, terms)
    like, two, bounded = _array(matrix.view(-1)[:0]), len(outs) == 2, threshold is not None
    threads = _threads(len(wanted) * max(columns, _LEAST))
    _do(job, like, two or None, bounded or None, threads, (matrix, *outs))
    torch.autograd.graph.increment_version(outs)


def _threads(work: int) -> int:
    """Return how many threads are worth as many elements."""
    return max(1, min(torch.get_num_threads(), work // _ALONE))


def _numbers(rows: np.ndarray[Any, Any], name: str, terms: int) -> np.ndarray[Any, Any]:
    """Return the numbers of ``cpu_kernels.write_rows``, with room for those of terms."""
    import numpy as np

    head, law = _kernels().HEAD, _kernels().LAWS[name]
    job = np.empty(head + rows.size + 2 * terms, np.uint64)
    job[:head] = 0, 0, job.size, len(rows), law, terms
    job[head : head + rows.size] = rows.reshape(-1)
    return job


def _along(job: np.ndarray[Any, Any], terms: Sequence[Term]) -> None:
    """Begin a job anew, along terms."""
    import numpy as np

    job[:2] = 0
    job[job.size - 2 * len(terms) : job.size - len(terms)] = [t.seed & _MASK for t in terms]
    bits = np.array([term.coefficient for term in terms], np.float32).view(np.uint32)
    job[job.size - len(terms) :] = bits


def _do(
    job: np.ndarray[Any, Any],
    like: np.ndarray[Any, Any],
    two: bool | None,
    bounded: bool | None,
    threads: int,
    alive: Sequence[Any],
) -> None:
    """Do a job of ``cpu_kernels.write_rows`` on so many threads; see ``share`` for ``alive``."""
    kernels = _kernels()

    def compiled() -> Any:
        return kernels.team_of(like.dtype.type, two is not None, bounded is not None)

    def work_on(*_: int) -> None:
        if alive:
            kernels.write_rows(job, like, two, bounded)

    share(job, int(job[3]), threads, compiled, work_on)


def share(
    job: np.ndarray[Any, Any],
    pieces: int,
    threads: int,
    compiled: Callable[[], Any],
    work_on: Callable[[int, int], None],
) -> None:
    """Let ``threads`` threads do the pieces of a job, each the next one that is left.

    Args:
        job: uint64; the first two numbers count pieces that are taken, and done.
        pieces: how many there are.
        threads: 1 or more.
        compiled: returns what does so as a C function of the job's address, for ``team``.
        work_on: does so in threads of ours. It must hold what the job has addresses of: it may
            outlive an interrupted caller.

    Raises:
        MemoryError: there was no room for a kernel's scratch.

    """
    # Loaded at the first call, however small: a measured run begins so.
    kernel = compiled() if team.possible() else None
    if kernel is not None and threads > 1 and team.available():
        # OpenMP ends threads that a smaller team has no place for; torch would start new ones.
        team.run(kernel.address, job.ctypes.data, torch.get_num_threads())
        _check_done(int(job[1]), pieces)
    else:
        _run(work_on, [(0, 0)] * threads)


def _check_done(done: int, pieces: int) -> None:
    if done != pieces:
        raise MemoryError(
            f"Expected {pieces} pieces of weights to be perturbed, got {done}: the noise kernel "
            "had no room for its scratch. Free some memory, and load the weights anew."
        )


def _rows(flats: Sequence[Flat], longest: int) -> np.ndarray[Any, Any]:
    """Cut tensors to rows of ``write_rows`` of about ``longest`` elements: (k, 7), uint64."""
    import numpy as np

    shapes = tuple((flat.source.numel(), flat.first % _ALIGN) for flat in flats)
    of, rows = _layout(shapes, longest, flats[0].source.itemsize)
    ends = [
        (
            source.data_ptr(),
            outs[0].data_ptr(),
            outs[-1].data_ptr(),
            0,
            first,
            key & _MASK,
            0 if bound is None else _bits(bound),
        )
        for source, outs, key, first, bound in flats
    ]
    placed: np.ndarray[Any, Any] = np.array(ends, np.uint64)[of] + rows
    return placed


@functools.lru_cache(maxsize=256)
def _layout(
    shapes: tuple[tuple[int, int], ...], longest: int, item: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return of which tensor each row is, (k,), and what is added to that one's numbers, (k, 7).

    ``shapes`` are how many elements there are, and how far past a block's begin the first is. The
    same modules are written at every step, and small numbers made anew cost as much as the noise.
    """
    import numpy as np

    of, rows = [], []
    for index, (count, first) in enumerate(shapes):
        cuts = range(longest, count - longest // 2, longest)
        for low, high in itertools.pairwise([0, *_aligned(cuts, first), count]):
            if low < high:
                of.append(index)
                rows.append((low * item, low * item, low * item, high - low, low, 0, 0))
    return np.array(of, np.intp), np.array(rows, np.uint64).reshape(-1, 7)


@functools.lru_cache(maxsize=4096)
def _bits(number: float) -> int:
    """Return the bits of the nearest float32: of a threshold, so the sign of zero is no matter."""
    import numpy as np

    return int(np.float32(number).view(np.uint32))


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
