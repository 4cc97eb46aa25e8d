"""A trace beside the real step on the CPU: ``zometer bench prediction`` compares many.

The truth is what torch's profiler sees at every allocation and release of torch's CPU allocator,
kernels' own temporaries included. Real weights are made, so models are shallow and small. Where
the two are known to differ, and by how much, is in ``known_differences.toml``.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from bench.predict.trace import Request, run, trace

_MARK = "zometer phase: "


@dataclass(frozen=True)
class Comparison:
    """Peaks of live bytes by phase, traced and real; "run" is what is outside of all phases."""

    traced: dict[str, int]
    real: dict[str, int]


def compare(request: Request) -> Comparison:
    """Trace a run with CPU kernels, take it for real in this process, and compare."""
    request = replace(request, emulate="cpu")
    gc.freeze()  # libraries: looking through them at each border takes longer than all the rest
    try:
        return Comparison(trace(request).peaks_by_phase(), real_peaks(request))
    finally:
        gc.unfreeze()


def real_peaks(request: Request) -> dict[str, int]:
    """Run for real on the CPU, and return the peak of live bytes while each phase was innermost.

    Bytes are counted from the beginning: what torch holds already (a table of the noise kernel)
    is not in it.
    """
    spec = request.spec.model_copy(update={"device": "cpu"})
    gc.collect()
    with (
        request.shape.taken(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as seen,
    ):
        run(spec, _Marks(), steps=request.steps, evaluated=request.evaluate)
        gc.collect()
    return _peaks(seen.profiler.kineto_results.events())


class _Marks:
    """Tells the profiler which phase it is."""

    @contextmanager
    def span(self, phase: str) -> Iterator[None]:
        with record_function(_MARK + phase):
            yield

    def built(self, module: Any) -> None:
        """Do nothing."""

    def relabel(self, tensors: Iterable[Tensor], component: str) -> None:
        """Do nothing."""


def _peaks(events: Iterable[Any]) -> dict[str, int]:
    times, sizes, marks = [], [], []
    for event in events:
        name = event.name()
        if name == "[memory]":
            times.append(event.start_ns())
            sizes.append(event.nbytes())
        elif name.startswith(_MARK):
            begin = event.start_ns()
            marks.append((begin, begin + event.duration_ns(), name.removeprefix(_MARK)))
    order = np.argsort(times, kind="stable")
    when = np.array(times)[order]
    level = np.cumsum(np.array(sizes)[order])
    found: dict[str, int] = {}
    phase = np.zeros(len(when), dtype=np.int64)  # 0: none
    names = ["run", *dict.fromkeys(name for _, _, name in marks)]
    for begin, end, name in sorted(marks):  # outer ones first, inner ones over them
        low, high = np.searchsorted(when, [begin, end])
        phase[low:high] = names.index(name)
        if low:  # a phase begins at what it finds
            found[name] = max(found.get(name, 0), int(level[low - 1]))
    borders = np.flatnonzero(np.diff(phase, prepend=-1)).tolist()
    for begin, end in zip(borders, [*borders[1:], len(phase)], strict=True):
        name = names[phase[begin]]
        found[name] = max(found.get(name, 0), int(level[max(begin - 1, 0) : end].max()))
    return found
