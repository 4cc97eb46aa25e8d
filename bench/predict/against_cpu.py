"""A trace beside the real step on the CPU: ``bench.predict.grid`` compares many.

The truth is what torch's profiler sees at every allocation and release of torch's CPU allocator,
kernels' own temporaries included. Real weights are made, so models are shallow and small.

Where the two are known to differ, by phase (not at the peak of any run of the grid tried):

- load, 5 KB: the saved state of torch's random stream is made out of sight.
- load of ``static_sparse_mezo``: places are chosen by magnitude, which fake weights don't have; a
  few pieces of 1 MiB.
- perturb and update of ``lozo``, a few KB: its kernel lays a factor out anew.
- forward, below 1 MiB: buffers inside torch's own kernels (flash attention of the CPU).
- backward in 16 bits, and under autocast: the CPU copies a bfloat16 operand of a float32 sum,
  which a GPU reads as it is (a few hundred KB; at the peak of models with small vocabularies).
- float16 where a processor has no such arithmetic: kernels widen their inputs. Not compared.
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

TOLERANCE_BYTES = 4096

_MARK = "zometer phase: "


@dataclass(frozen=True)
class Comparison:
    """Peaks of live bytes, traced and real."""

    request: Request
    traced: dict[str, int]
    """By phase."""
    real: dict[str, int]

    @property
    def peak(self) -> int:
        """The real peak of the run."""
        return max(self.real.values())

    @property
    def error_bytes(self) -> int:
        """Traced minus real peak of the run."""
        return max(self.traced.values()) - self.peak

    @property
    def agrees(self) -> bool:
        """Whether the run's peak is the same within ``TOLERANCE_BYTES``."""
        return abs(self.error_bytes) <= TOLERANCE_BYTES

    def phase_errors(self) -> dict[str, int]:
        """Return traced minus real of each phase that differs by more than the tolerance.

        "run", what is outside of all phases, is the end, when everything is freed: no part of it.
        """
        phases = [p for p in dict.fromkeys([*self.real, *self.traced]) if p != "run"]
        errors = {p: self.traced.get(p, 0) - self.real.get(p, 0) for p in phases}
        return {p: e for p, e in errors.items() if abs(e) > TOLERANCE_BYTES}


def compare(request: Request) -> Comparison:
    """Trace a run with CPU kernels, take it for real in this process, and compare."""
    request = replace(request, emulate="cpu")
    return Comparison(request, trace(request).peaks_by_phase(), real_peaks(request))


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
