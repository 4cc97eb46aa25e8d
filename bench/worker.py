"""One run, in a process of its own: ``python -m bench.worker FOLDER``.

Loads model, task and method, takes the steps, evaluates, measures, and writes the record. One
process a run: after an out-of-memory error a process is never quite clean again.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

import psutil
import torch

from bench import (
    environment,
    failures,
    limits,
    method_state,
    models,
    resume,
    snapshot,
    tasks,
    threads,
    trackers,
    tuning,
)
from bench.accelerator import Accelerator
from bench.built import Built, build
from bench.cell import (
    SAVED,
    TRAJECTORY,
    Cell,
    Events,
    Outcome,
    log_tail,
    read_cell,
    start_event,
    tell,
)
from bench.monitor import Monitor
from bench.objective import Seen, objective, precision
from bench.precision import Precision, digest, is_watched
from bench.records import Declared, Evaluation, Failure, Flag, RunSpec, UserError
from bench.sampler import Sampler
from bench.schedule import rate
from bench.snapshot import Snapshot
from bench.stopwatch import stopwatch
from zo_core import NonFiniteLoss, Params, StepInfo, Term, derive_seed, noise
from zo_core.base import Replayable, Span, Unsupported
from zo_core.trajectory import Trajectory, TrajectoryWriter

_PR_SET_PDEATHSIG = 1


class Run:
    """The run of one cell."""

    def __init__(self, folder: Path, cell: Cell) -> None:
        """Hold what is to be run; nothing that can fail happens yet."""
        self.folder, self.spec = folder, cell.spec
        self.events = Events(folder)
        self.events.write("start", start_event())
        self.device = Accelerator(cell.spec.device)
        self.sampler = Sampler(
            folder,
            pid=os.getpid(),
            visible=os.environ.get("CUDA_VISIBLE_DEVICES"),
            nvml=cell.spec.device.startswith("cuda"),
            device=cell.spec.device,
        )
        self.snapshot: Snapshot | None = None
        self.precision: Precision | None = None
        self.limit: limits.MemoryLimit | None = None
        self.in_use_bytes: int | None = None
        self.free_bytes: int | None = None
        self.monitor = Monitor(self.spec.measure, {})  # until there is a baseline
        self.taken = 0
        self.train_seconds = 0.0
        self.queries = 0
        self.backwards = 0

    def go(self) -> None:
        """Run it all; whatever stops it is raised."""
        self.sampler.start()  # first of all: its baseline is of a device that nobody touched
        _use_threads(self.spec)
        self.environment = environment.read(self.spec.device)
        self.events.write("environment", self.environment)
        environment.check_device(self.spec.device)
        _warm(self.spec)
        self._record_history()
        self.monitor = self._monitor()
        with self.monitor.phase("run"):
            self._limit_memory()
            self._load()
            done = self._take_up()
            self._tell()
            if done is None:
                self._evaluate()
            self._train(done)
        if self.snapshot:
            self.snapshot.keep()
        self._digest()
        (self.folder / SAVED).unlink(missing_ok=True)

    def failure(self, error: BaseException) -> Failure:
        """Describe what stopped the run."""
        return Failure(
            cause=type(error).__name__,
            phase=self.monitor.failed_phase,
            step=self.taken,
            bytes_requested=failures.bytes_requested(error),
            bytes_in_use=self.in_use_bytes,
            bytes_free=self.free_bytes,
            bytes_limit=self.spec.memory_limit_bytes or self._device_bytes(),
            log_tail=log_tail(self.folder),
        )

    def measured(self) -> None:
        """Put everything measured so far among the events."""
        for measurement in self.monitor.measurements():
            self.events.write("measurement", measurement)
        self.events.write("cpu", {"seconds": time.process_time()})

    def _device_bytes(self) -> int | None:
        """Return the capacity of the accelerator; None on the CPU, and where it is not here."""
        memory = self.device.free_and_total_bytes()
        return memory[1] if memory else None

    def _record_history(self) -> None:
        if not snapshot.asked():
            return
        if reason := snapshot.needs_cuda(self.spec.device):
            print(reason)
            return
        self.snapshot = Snapshot(self.folder)
        text = (
            "the allocator kept a history for --memory-snapshot: steps took longer for it, and "
            "the host's peaks hold it"
        )
        self.events.write("flag", Flag(name="memory_history", severity="suspect", text=text))

    def _monitor(self) -> Monitor:
        working, reasons = trackers.available(self.spec.device)
        mode = self.spec.measure
        fit = {n: m for n, m in trackers.modules().items() if mode in getattr(m, "MODES", (mode,))}
        wanted = {m: why for n, why in reasons.items() if n in fit for m in fit[n].METRICS}
        if self.device.is_cpu:  # a run on the CPU has no device figures to miss
            wanted = {m: why for m, why in wanted.items() if not m.startswith("device_")}
        return Monitor(
            mode,
            {n: tracker for n, tracker in working.items() if n in fit},
            wanted,
            trackers.definitions(),
            synchronize=self.device.synchronize,
            on_phase=self._on_phase,
            on_failure=self._failed,
            stopwatch=stopwatch(self.spec.device),
        )

    def _on_phase(self, name: str, depth: int, t_ns: int) -> None:
        self.events.write("phase", {"name": name, "depth": depth, "t_ns": t_ns})

    def _limit_memory(self) -> None:
        limit = self.spec.memory_limit_bytes
        if limit is None:
            return
        if self.device.is_cpu:
            self.limit = limits.MemoryLimit(limit)
        else:
            self.device.allow(limit)

    def _failed(self) -> None:
        limit = self.spec.memory_limit_bytes
        if self.limit:
            self.in_use_bytes = self.limit.in_use_bytes()
            self.limit.lift()
        else:
            self.in_use_bytes = self.device.in_use_bytes()
        memory = self.device.free_and_total_bytes()
        self.free_bytes = failures.bytes_free(
            limit, self.in_use_bytes, memory[0] if memory else None
        )
        if self.snapshot:
            self.snapshot.keep()

    def _load(self) -> None:
        with self.monitor.phase("load"):
            self.built: Built = build(self.spec)
            self.state = self.built.method.init(self.built.params)
        self.sampler.mark()
        if isinstance(self.built.method, Replayable) and self.spec.measure == "time":
            self.precision = Precision(self.built.params)

    def _tell(self) -> None:
        built = self.built
        self.events.write("model", built.facts)
        self.events.write("task", built.task.facts)
        self.events.write("declared", Declared(**vars(built.method.cost(built.params))))

    def _take_up(self) -> resume.Done | None:
        """Go to where an earlier try was killed. Not in a memory run: peaks are of one process."""
        done = None
        if self.spec.measure == "memory":
            resume.forget(self.folder)
        else:
            done = resume.take_up(self.folder, self.built.method)
        self.events.close()
        self.events = Events(self.folder)  # the file was replaced
        if done is None:
            return None
        self.state = None  # not twice in memory
        with self.monitor.phase("resume"):
            self.state = resume.restore_(self.folder, done, self.built.method, self.built.params)
        self.taken = done.steps
        self.train_seconds = done.total("seconds")
        self.queries, self.backwards = done.total("queries"), done.total("backwards")
        text = f"an earlier process was killed; this one went on from step {done.steps}"
        self.events.write("flag", Flag(name="resumed", severity="info", text=text))
        return done

    def _train(self, done: resume.Done | None) -> None:
        spec = self.spec
        if done is not None and self._due() and not done.evaluated:
            self._evaluate()
        with self._trajectory(done) as trajectory:
            for step in range(self.taken, spec.steps):
                with self.monitor.phase("train"):
                    info = self._step(step)
                if info.estimate is not None:
                    trajectory.append(info)
                self._told(info)
                if info.estimate is None and spec.save_every and self.taken % spec.save_every == 0:
                    resume.save(self.folder, self.taken, self.built.params, self.state)
                if self._due():
                    self._evaluate()
        for one in method_state.measure(self.built.method, self.built.params, self.state):
            self.events.write("measurement", one)

    def _due(self) -> bool:
        every = self.spec.eval_every
        return self.taken == self.spec.steps or bool(every and self.taken % every == 0)

    def _trajectory(self, done: resume.Done | None) -> TrajectoryWriter:
        spec = self.spec
        begun = Trajectory(spec.method, dict(spec.options), spec.lr, spec.seed)
        if done is not None and isinstance(self.built.method, Replayable):
            begun = resume.told(self.folder, done)
        return TrajectoryWriter(self.folder / TRAJECTORY, begun)

    def _step(self, step: int) -> StepInfo:
        built, spec = self.built, self.spec
        batch, seen = built.task.batch(step), Seen()
        looked_at = objective(spec, built.task, built.module, batch, seen)
        built.module.train(built.method.needs_gradient)
        if built.method.needs_gradient:  # dropout alone draws from the global stream
            torch.manual_seed(derive_seed(spec.seed, step, "dropout") % 2**63)
        with self._watched(step) as span:
            self.device.synchronize()
            start = time.perf_counter()
            self.state, info = built.method.step_(
                built.params,
                looked_at,
                self.state,
                seed=derive_seed(spec.seed, step),
                lr=rate(spec, step),
                span=span,
            )
            self.device.synchronize()
            self.seconds = time.perf_counter() - start
        return replace(info, queries=seen.passes(batch))

    @contextmanager
    def _watched(self, step: int) -> Iterator[Span]:
        if self.precision is None or not is_watched(step, self.spec.warmup_steps):
            yield self.monitor.phase
            return
        with self.precision.step(self.monitor.phase) as span:
            yield span
        if not is_watched(step + 1, self.spec.warmup_steps) or step + 1 == self.spec.steps:
            for measurement in self.precision.measurements():  # now: a killed run keeps them
                self.events.write("measurement", measurement)

    def _digest(self) -> None:
        """Tell what the weights are, so that a replay can be checked against them."""
        if isinstance(self.built.method, Replayable):
            self.events.write("weights", {"digest": digest(self.built.params)})

    def _told(self, info: StepInfo) -> None:
        """Count a step, and write it down: after its trajectory, which a resumed run reads."""
        self.taken += 1
        self.train_seconds += self.seconds
        self.queries += info.queries
        self.backwards += info.backwards
        self.events.write(
            "step",
            {
                "loss": info.losses[0],
                "seconds": self.seconds,
                "queries": info.queries,
                "backwards": info.backwards,
                "t_ns": time.monotonic_ns(),
            },
        )

    def _evaluate(self) -> None:
        if not self.spec.eval_examples:
            return
        self.sampler.mark()
        with self.monitor.phase("evaluate"):
            with precision(self.spec):
                seen = self.built.task.evaluate(self.built.module)
            if not math.isfinite(seen.loss):
                raise NonFiniteLoss(f"The evaluation loss is {seen.loss}: it diverged; lower lr.")
        self.sampler.mark()
        evaluation = Evaluation(
            step=self.taken,
            forward_passes=self.queries,
            backward_passes=self.backwards,
            train_seconds=self.train_seconds if self.spec.measure == "time" else None,
            n=seen.n,
            correct=seen.correct,
            loss=seen.loss,
            predictions=seen.predictions,
            scores=seen.scores,
        )
        self.events.write("evaluation", evaluation)


def _use_threads(spec: RunSpec) -> None:
    torch.set_num_threads(threads.count(spec.threads))
    torch.ones(1 << 17).sum()  # start the pool, so that its stacks belong to the baseline


def _warm(spec: RunSpec) -> None:
    """Load the code that will run (noise kernel, model classes): libraries are in the baseline."""
    params = Params([("warm", torch.zeros(1, dtype=getattr(torch, spec.dtype)))])
    for thresholds in (None, {params[0].key: 0.0}):
        noise.add_(params, "gaussian", [Term(0, 1.0)], thresholds=thresholds)
    with suppress(UserError):  # loading will say it again, in its phase
        shape = models.load_shape(
            spec.model, dtype=spec.dtype, device="meta", head_classes=tasks.head_classes(spec)
        )
        tuning.apply_(shape, spec.tuning, spec.tuning_options, seed=0)


class _Ended(BaseException):
    """The parent asks the run to end."""


def _end(number: int, frame: FrameType | None) -> None:
    raise _Ended


def _die_with(parent: int) -> None:
    """Never outlive ``parent``, not even if it died while this process was starting."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _wall_seconds() -> float:
    """Return how long this process has lived."""
    return time.time() - psutil.Process().create_time()


def main(folder: Path, parent: int) -> None:
    """Run the cell in ``folder`` for ``parent``, and say how it ended, whatever happens."""
    _die_with(parent)
    signal.signal(signal.SIGTERM, _end)
    run = Run(folder, read_cell(folder))
    try:
        run.go()
        outcome = Outcome("completed", "all steps were taken", _wall_seconds())
    except _Ended:
        run.measured()
        run.sampler.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)  # the parent sees why, and writes the record
    except Exception as error:  # why: whatever it is becomes a row of the table
        if not isinstance(error, UserError | Unsupported):
            traceback.print_exc()
        reason = failures.first_line(error)
        failure = run.failure(error)
        outcome = Outcome(failures.status_of(error), reason, _wall_seconds(), failure)
    run.measured()
    run.sampler.close()
    tell(run.events, outcome)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
