"""A step, and what may watch it: nothing, or all that watches it in a run."""

from __future__ import annotations

import json
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from bench import trackers
from bench.accelerator import Accelerator
from bench.cell import EVENTS
from bench.monitor import Monitor
from bench.records import Measure
from bench.records.monitor_cost import Watch
from bench.sampler import Sampler, trace
from bench.stepping.cases import method
from bench.stepping.contenders import Bench
from bench.stopwatch import stopwatch
from zo_core import Method, derive_seed
from zo_core.base import Span, no_span


class Step:
    """The step of one method on one minibatch, taken again and again."""

    def __init__(self, bench: Bench, token: str) -> None:
        """Build the method of ``token``; its state is allocated now."""
        self._method: Method = method(token)
        self._bench, self._taken = bench, 0
        self._state = self._method.init(bench.built.params)

    def take(self, span: Span = no_span) -> float:
        """Take one step and return its first loss."""
        bench, built = self._bench, self._bench.built
        built.module.train(self._method.needs_gradient)
        self._state, info = self._method.step_(
            built.params,
            bench.closure(),
            self._state,
            seed=derive_seed(bench.spec.seed, "monitor", self._taken),
            lr=bench.spec.lr,
            span=span,
        )
        self._taken += 1
        return info.losses[0]


class Written:
    """Events as a run writes them: a line each, on its way to the disk when the call returns."""

    def __init__(self, file: TextIO) -> None:
        """Write to ``file``, which is buffered by lines."""
        self._file = file
        self.count = 0

    def write(self, event: str, body: dict[str, object]) -> None:
        """Write one."""
        self.count += 1
        self._file.write(json.dumps({"event": event, **body}) + "\n")


class Watched:
    """Steps as a run takes them: in a phase, with the engine's own inside, each written down."""

    def __init__(self, step: Step, monitor: Monitor, events: Written) -> None:
        """Made by :func:`watching`."""
        self._step, self._monitor, self._events = step, monitor, events

    def take(self) -> None:
        """Take one step."""
        with self._monitor.phase("train"):
            loss = self._step.take(self._monitor.phase)
        self._events.write("step", {"loss": loss})


class Helper:
    """What is known of the sampler's process once it has ended."""

    cpu_seconds = 0.0
    """On the CPU, its start and its end included."""
    share: float | None = None
    """Of one core, while it ran; without its start."""


@contextmanager
def watching(
    step: Step, watch: Watch, device: str, interval_seconds: float, helper: Helper
) -> Iterator[Step | Watched]:
    """Bring up what watches; what it costs to bring it up is outside what is timed."""
    if watch == "nothing":
        yield step
        return
    with tempfile.TemporaryDirectory(prefix="zometer-monitor-") as name:
        folder = Path(name)
        before = _children_cpu_seconds()
        with _sampler(folder, device, interval_seconds):
            with (folder / EVENTS).open("a", encoding="utf-8", buffering=1) as file:
                written = Written(file)
                monitor = monitor_of(watch, device, written)
                with monitor.phase("run"):
                    yield Watched(step, monitor, written)
        helper.cpu_seconds = _children_cpu_seconds() - before
        helper.share = _share(folder)


def monitor_of(mode: Measure, device: str, events: Written) -> Monitor:
    """Return the monitor that a run in this mode has, with the meters that work here."""
    here = Accelerator(device)

    def on_phase(name: str, depth: int, t_ns: int) -> None:
        events.write("phase", {"name": name, "depth": depth, "t_ns": t_ns})

    return Monitor(
        mode,
        meters(mode, device),
        {},
        trackers.definitions(),
        synchronize=here.synchronize,
        on_phase=on_phase,
        stopwatch=stopwatch(device),
    )


def meters(mode: Measure, device: str) -> dict[str, trackers.Tracker]:
    """Return the trackers that a run in this mode would read."""
    working, _ = trackers.available(device)
    known = trackers.modules()
    return {n: t for n, t in working.items() if mode in getattr(known[n], "MODES", (mode,))}


def _sampler(folder: Path, device: str, interval_seconds: float) -> Sampler:
    return Sampler(
        folder,
        pid=os.getpid(),
        visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
        interval_seconds=interval_seconds,
        nvml=device.startswith("cuda"),
    )


def _children_cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _share(folder: Path) -> float | None:
    """Return the CPU seconds that the sampler counts of itself, over the time in between."""
    own = [r for r in trace.read(folder / trace.TRACE) if r.metric == "sampler_cpu_seconds"]
    if len(own) < 2 or own[-1].t_ns == own[0].t_ns:
        return None
    return (own[-1].value - own[0].value) / ((own[-1].t_ns - own[0].t_ns) / 1e9)
