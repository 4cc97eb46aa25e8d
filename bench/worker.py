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
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil
import torch

from bench import environment, failures, limits, models, tasks, trackers
from bench.cell import TRAJECTORY, Cell, Events, Outcome, finish, log_tail, now, read_cell
from bench.monitor import Monitor
from bench.records import Declared, Evaluation, Failure, RunSpec, UserError
from zo_core import (
    Closure,
    Method,
    NonFiniteLoss,
    Params,
    StepInfo,
    Term,
    derive_seed,
    methods,
    noise,
)
from zo_core.base import Span, no_span
from zo_core.trajectory import Trajectory, TrajectoryWriter

_PR_SET_PDEATHSIG = 1


class Run:
    """The run of one cell."""

    def __init__(self, folder: Path, cell: Cell) -> None:
        """Hold what is to be run; nothing that can fail happens yet."""
        self.folder, self.spec = folder, cell.spec
        self.on_cuda = cell.spec.device.startswith("cuda")
        self.events = Events(folder)
        self.events.write("start", {"at": now()})
        self.limit: limits.MemoryLimit | None = None
        self.in_use_bytes: int | None = None
        self.monitor = Monitor(self.spec.measure, {})  # until there is a baseline
        self.taken = 0
        self.train_seconds = 0.0
        self.queries = 0
        self.backwards = 0

    def go(self) -> None:
        """Run it all; whatever stops it is raised."""
        _use_threads(self.spec)
        # Dropout of first-order runs draws from the global stream, and nothing else does.
        torch.manual_seed(self.spec.seed)
        self.events.write("environment", environment.read(self.spec.device))
        self._check_device()
        _warm(self.spec)
        self.monitor = self._monitor()
        with self.monitor.phase("run"):
            self._limit_memory()
            self._load()
            self._evaluate()
            self._train()

    def failure(self, error: BaseException) -> Failure:
        """Describe what stopped the run."""
        return Failure(
            cause=type(error).__name__,
            phase=self.monitor.failed_phase,
            step=self.taken,
            bytes_requested=failures.bytes_requested(error),
            bytes_in_use=self.in_use_bytes,
            bytes_limit=self.spec.memory_limit_bytes or self._device_bytes(),
            log_tail=log_tail(self.folder),
        )

    def measured(self) -> None:
        """Put everything measured so far among the events."""
        for measurement in self.monitor.measurements():
            self.events.write("measurement", measurement)

    def _check_device(self) -> None:
        index = torch.device(self.spec.device).index or 0
        if self.on_cuda and index >= torch.cuda.device_count():
            raise UserError(
                f"Device '{self.spec.device}' is not here: torch sees "
                f"{torch.cuda.device_count()} CUDA devices."
            )

    def _device_bytes(self) -> int | None:
        """Return the capacity of the CUDA device; None on the CPU."""
        if not (self.on_cuda and torch.cuda.is_available()):
            return None
        return int(torch.cuda.get_device_properties(self.spec.device).total_memory)

    def _monitor(self) -> Monitor:
        working, reasons = trackers.available(self.spec.device)
        known = trackers.modules()
        wanted = {m: why for name, why in reasons.items() for m in known[name].METRICS}
        if not self.on_cuda:  # a run on the CPU has no device figures to miss
            wanted = {m: why for m, why in wanted.items() if not m.startswith("device_")}
        return Monitor(
            self.spec.measure,
            working,
            wanted,
            trackers.definitions(),
            synchronize=self._synchronize,
            on_phase=lambda name: self.events.write("phase", {"name": name}),
            on_failure=self._failed,
        )

    def _limit_memory(self) -> None:
        limit = self.spec.memory_limit_bytes
        if limit is None:
            return
        if not self.on_cuda:
            self.limit = limits.MemoryLimit(limit)
            return
        index = torch.device(self.spec.device).index or 0  # "cuda" alone is refused here
        share = limit / (self._device_bytes() or limit)
        torch.cuda.set_per_process_memory_fraction(min(1.0, share), index)

    def _failed(self) -> None:
        if self.limit:
            self.in_use_bytes = self.limit.in_use_bytes()
            self.limit.lift()
        elif self.on_cuda:
            self.in_use_bytes = torch.cuda.memory_reserved(self.spec.device)

    def _load(self) -> None:
        spec = self.spec
        with self.monitor.phase("load"):
            loaded = models.load(spec.model, dtype=spec.dtype, device=spec.device, seed=spec.seed)
            self.task = tasks.build(spec, loaded)
            self.module = loaded.module
            self.method: Method = methods.build(spec.method, **spec.options)
            self.params = Params.of(self.module)
            self.state = self.method.init(self.params)
        facts = loaded.facts.model_copy(update={"trained_parameters": self.params.elements})
        self.events.write("model", facts)
        self.events.write("task", self.task.facts)
        self.events.write("declared", Declared(**vars(self.method.cost(self.params))))

    def _train(self) -> None:
        spec = self.spec
        header = Trajectory(spec.method, dict(spec.options), spec.lr, spec.seed)
        with TrajectoryWriter(self.folder / TRAJECTORY, header) as trajectory:
            for step in range(spec.steps):
                with self.monitor.phase("train"):
                    info = self._step(step)
                if info.estimate is not None:
                    trajectory.append(info.estimate, spec.lr)
                last = self.taken == spec.steps
                if last or (spec.eval_every and self.taken % spec.eval_every == 0):
                    self._evaluate()

    def _step(self, step: int) -> StepInfo:
        batch = self.task.batch(step)
        objective = Closure(lambda: self.task.loss(self.module, batch))
        self.module.train(self.method.needs_gradient)
        self._synchronize()
        start = time.perf_counter()
        self.state, info = self.method.step_(
            self.params,
            objective,
            self.state,
            seed=derive_seed(self.spec.seed, step),
            lr=self.spec.lr,
            span=self._span(),
        )
        self._synchronize()
        self._count(info, time.perf_counter() - start)
        return info

    def _synchronize(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize(self.spec.device)

    def _span(self) -> Span:
        # Kernels of a CUDA device run behind the host's back: without a synchronisation, which
        # would slow a timed step, their time can't be told apart by phase.
        return no_span if self.on_cuda and self.spec.measure == "time" else self.monitor.phase

    def _count(self, info: StepInfo, seconds: float) -> None:
        self.taken += 1
        self.train_seconds += seconds
        self.queries += info.queries
        self.backwards += info.backwards
        self.events.write(
            "step",
            {
                "loss": info.losses[0],
                "seconds": seconds,
                "queries": info.queries,
                "backwards": info.backwards,
            },
        )

    def _evaluate(self) -> None:
        if not self.spec.eval_examples:
            return
        with self.monitor.phase("evaluate"):
            seen = self.task.evaluate(self.module)
            if not math.isfinite(seen.loss):
                raise NonFiniteLoss(f"The evaluation loss is {seen.loss}: it diverged; lower lr.")
        evaluation = Evaluation(
            step=self.taken,
            forward_passes=self.queries,
            backward_passes=self.backwards,
            train_seconds=self.train_seconds if self.spec.measure == "time" else None,
            n=seen.n,
            correct=seen.correct,
            loss=seen.loss,
            predictions=seen.predictions,
        )
        self.events.write("evaluation", evaluation)


def _use_threads(spec: RunSpec) -> None:
    torch.set_num_threads(spec.threads or environment.usable_cores())
    torch.ones(1 << 17).sum()  # start the pool, so that its stacks belong to the baseline


def _warm(spec: RunSpec) -> None:
    """Load the code that will run (noise kernel, model classes): libraries are in the baseline."""
    tensor = torch.zeros(1, dtype=getattr(torch, spec.dtype))
    noise.add_(Params([("warm", tensor)]), "gaussian", [Term(0, 1.0)])
    with suppress(UserError):  # loading will say it again, in its phase
        models.load_shape(spec.model, dtype=spec.dtype, device="meta")


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
    """Run the cell in ``folder`` for ``parent``, and write its record, whatever happens."""
    _die_with(parent)
    signal.signal(signal.SIGTERM, _end)
    run = Run(folder, read_cell(folder))
    try:
        run.go()
        outcome = Outcome("completed", "all steps were taken", _wall_seconds())
    except _Ended:
        run.measured()  # the parent knows why, and writes the record
        return
    except Exception as error:  # why: whatever it is becomes a row of the table
        if not isinstance(error, UserError):
            traceback.print_exc()
        reason = failures.first_line(error)
        failure = run.failure(error)
        outcome = Outcome(failures.status_of(error), reason, _wall_seconds(), failure)
    run.measured()
    finish(folder, outcome)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
