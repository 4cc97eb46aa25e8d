"""Predictions of runs, each traced in a process of its own, and kept on disk.

::

    predict(spec)          one run
    predict_all(specs)     many: on all cores, in order, errors beside predictions

A process traces many runs, one after another. It sees no GPU, computes nothing, and holds no
weights, so it needs the memory of the imported libraries and of one log.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal
from unittest.mock import patch

from bench.predict import pool
from bench.predict.parallel import Parallel, refuse
from bench.predict.prediction import EQUAL_LENGTHS, Prediction
from bench.records import ModelFacts, RunSpec, UserError

if TYPE_CHECKING:
    from bench.predict.log import Log
    from bench.predict.trace import Request

Device = Literal["cuda", "cpu"]

_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
PEAK = "peak resident set of the tracing process, bytes"
"""Fact of a prediction: no weights are in memory."""
SECONDS = 1800.0  # of one run; the largest models take minutes
_STEPS = 2
_WITHOUT_WEIGHT = (
    "group", "lr", "lr_schedule", "lr_warmup_steps", "warmup_steps", "save_every", "threads",
    "target_accuracy", "measure", "memory_limit_bytes", "time_limit_seconds", "eval_every",
    "device",
)  # fmt: skip
_BLOCKS_WORTH_A_LINE = 24
"""Models of more blocks are traced shallow where that is exact: three traces cost half a one."""


def predict(
    spec: RunSpec,
    *,
    emulate: Device = "cuda",
    full: bool = False,
    parallel: Parallel | None = None,
) -> Prediction:
    """Return the prediction of one run; see :func:`predict_all`."""
    (found,) = predict_all([spec], emulate=emulate, full=full, parallel=[parallel])
    if isinstance(found, UserError):
        raise found
    return found


def predict_all(
    specs: Sequence[RunSpec],
    *,
    emulate: Device | None = "cuda",
    full: bool = False,
    reference: Sequence[str] = (),
    parallel: Sequence[Parallel | None] = (),
    workers: int | None = None,
) -> Iterator[Prediction | UserError]:
    """Yield the prediction of each run in order, or why there is none.

    Args:
        specs: the runs.
        emulate: whose kernels and defaults are taken; None: those of the spec's own device.
        full: trace all layers. If not, a deep model of a zeroth-order method is traced at three
            small depths: live bytes are the same to the byte, reserved ones are estimates.
        reference: for each run, whose step is traced instead of the engine's: a kind of
            ``bench.predict.reference``. All layers are, always.
        parallel: for each run, its layout over several devices; None: one device. All layers are
            traced on several, always: how many a device holds is no line in depth.
        workers: processes; as many as cores, four at most, where absent.

    """
    kinds = reference or [""] * len(specs)
    layouts = parallel or [None] * len(specs)
    asked = [
        _asked(spec, emulate, full, kind, layout)
        for spec, kind, layout in zip(specs, kinds, layouts, strict=True)
    ]
    known: dict[str, Prediction | UserError] = {}
    missing: dict[str, Asked] = {}
    for one in asked:
        if isinstance(one, Asked) and one.key not in known | missing:
            if (kept := one.kept()) is None:
                missing[one.key] = one
            else:
                known[one.key] = kept
    cores = len(os.sched_getaffinity(0))
    jobs = [one.job for one in missing.values()]
    made = zip(missing, _made(jobs, workers or min(4, cores)), strict=True)
    for spec, one in zip(specs, asked, strict=True):
        if isinstance(one, UserError):
            yield one
            continue
        while one.key not in known:
            done, found = next(made)
            known[done] = found
            missing[done].keep(found)
        found = known[one.key]
        yield replace(found, spec=spec) if isinstance(found, Prediction) else found


@dataclass(frozen=True)
class Job:
    """One trace to make."""

    request: Request
    full: bool
    reference: str = ""


@dataclass(frozen=True)
class Asked:
    """A trace to make or to find, and its key in the cache."""

    job: Job
    key: str
    lasting: bool
    """Whether the key holds all that decides the result, so that it may be kept on disk."""

    def kept(self) -> Prediction | None:
        """Return what the cache holds."""
        from bench.predict import cache  # why here: it imports torch

        return cache.read(cache.path_of(self.key)) if self.lasting else None

    def keep(self, found: Prediction | UserError) -> None:
        """Put a prediction into the cache."""
        from bench.predict import cache  # why here: it imports torch

        if self.lasting and isinstance(found, Prediction):
            cache.write(cache.path_of(self.key), found)


def _asked(
    spec: RunSpec, emulate: Device | None, full: bool, kind: str, parallel: Parallel | None
) -> Asked | UserError:
    """Return what is traced for a run; an error of one run does not end the others."""
    from bench.predict import cache  # why here: it imports torch

    try:
        if parallel is not None:
            refuse(spec, parallel)
        request = request_of(spec, emulate or emulated_for(spec), kind, parallel)
        job = Job(request, full or bool(kind or parallel), kind)
        return Asked(job, cache.key_of(request, f"{job.full} {kind}"), cache.keeps(request))
    except Exception as error:  # why: whatever it is, the other runs go on
        return error_of(spec, error)


def request_of(
    spec: RunSpec, emulate: Device, reference: str = "", parallel: Parallel | None = None
) -> Request:
    """Return what is traced for a run; papers' code computes attention by the plain formula."""
    from bench.predict.shapes import Shape  # why here: they import torch
    from bench.predict.trace import Request

    shape = Shape(attention="eager") if reference else Shape()
    return Request(essence(spec), emulate=emulate, shape=shape, parallel=parallel)


def essence(spec: RunSpec) -> RunSpec:
    """Return the run that takes the same memory and work, without what does not matter for them.

    So that a memory run and a time run, seeds and learning rates are traced once.
    """
    changes: dict[str, object] = dict.fromkeys(_WITHOUT_WEIGHT)
    if spec.task in EQUAL_LENGTHS:
        changes["seed"] = None
    kept = spec.model_dump(exclude=set(changes))
    if spec.steps:
        kept["steps"] = min(spec.steps, _STEPS)
    return RunSpec.model_validate({**kept, "lr": 1e-6 if spec.lr else 0.0})


def emulated_for(spec: RunSpec) -> Device:
    """Return the device whose kernels a run takes.

    Raises:
        UserError: its memory is not handled as on CUDA or on the CPU.

    """
    if spec.device.startswith(("mps", "xpu")):
        raise UserError(
            f"Expected device cpu or cuda, got '{spec.device}': neither its kernels nor its "
            "allocator are known here. Measure it with 'zometer run', or predict it on cuda."
        )
    return "cpu" if spec.device == "cpu" else "cuda"


def _made(jobs: Sequence[Job], workers: int) -> Iterator[Prediction | UserError]:
    how = pool.How(_outcome, begin, lost, _spoils)
    return pool.results(how, jobs, workers=workers, seconds=SECONDS)


def lost(job: Job, why: pool.Why) -> Prediction | UserError:
    """Say why the process of a job gave no answer."""
    spec = job.request.spec
    what = f"Method '{spec.method}' on '{spec.model}' was not predicted: "
    if why == "too long":
        return UserError(
            f"{what}tracing took longer than {SECONDS:.0f} s. Trace without --full, or on a "
            "machine that is less busy.",
            exit_code=3,
        )
    return UserError(
        f"{what}the process that traced it died, perhaps for want of memory (it needs about 0.6 "
        "GiB, 1.5 GiB for the largest models). Free some, and give the same command again.",
        exit_code=3,
    )


def _spoils(found: Prediction | UserError) -> bool:
    """Whether a trace was left in the middle, with functions of torch half replaced."""
    return isinstance(found, UserError)


def _outcome(job: Job) -> Prediction | UserError:
    """Trace one run; in a process of its own, where no mistake may end those of the others."""
    gc.freeze()  # libraries: looking through them at each border takes longer than all the rest
    try:
        found = _predicted(job)
        return replace(found, facts={**found.facts, PEAK: str(_peak_bytes())})
    except Exception as error:  # why: what fake tensors can't do fails in many ways
        return error_of(job.request.spec, error)
    finally:
        gc.unfreeze()


def _peak_bytes() -> int:
    """Return the peak of this process so far; 0 outside of Linux, where nobody can say."""
    from bench.trackers.host_memory import status_bytes  # why here: see _predicted

    return status_bytes("VmHWM") if sys.platform == "linux" else 0


def error_of(spec: RunSpec, error: Exception) -> UserError:
    """Return an error as the one line why a run is not predicted."""
    if isinstance(error, UserError):
        return error
    lines = str(error).strip().splitlines()
    told = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return UserError(f"Method '{spec.method}' on '{spec.model}' can't be traced: {told}", 3)


def begin() -> None:
    """Prepare a process, before it imports torch; an interrupt is the parent's to answer."""
    os.environ.update(_ENVIRONMENT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _predicted(job: Job) -> Prediction:
    """Trace one run and make its figures; in a process of its own."""
    from bench.predict import deep  # why here: the parent need not import torch
    from bench.predict.shapes import layers_of

    spec = job.request.spec
    layers = job.request.shape.layers or layers_of(spec.model)
    try:
        if job.full or layers <= _BLOCKS_WORTH_A_LINE or not _keeps_no_activations(spec):
            raise deep.NotAffine("not tried")
        shallow = {depth: _at(job, depth, layers) for depth in deep.DEPTHS}
        first = shallow[deep.DEPTHS[0]]
        return replace(
            first,
            model=deep.facts_at(layers, {d: p.model for d, p in shallow.items()}),
            layers=layers,
            traced_layers=deep.DEPTHS,
            figures={
                kind: tuple(
                    deep.figures_at(layers, {d: p.figures[kind][i] for d, p in shallow.items()})
                    for i in range(len(first.needs))
                )
                for kind in first.figures
            },
            work=deep.work_at(layers, {d: p.work for d, p in shallow.items()}),
        )
    except deep.NotAffine:
        return _at(job, layers, layers)


def _at(job: Job, layers: int, whole: int) -> Prediction:
    """Trace a run at a depth of a model that has ``whole`` blocks."""
    request = job.request
    if layers != whole:
        request = replace(request, shape=replace(request.shape, layers=layers))
    log, model = traced(request, job.reference)
    return of_log(request, log, model, layers)


def traced(request: Request, reference: str = "") -> tuple[Log, ModelFacts]:
    """Trace a run here, and return what was built too.

    Raises:
        UserError: as ``bench.predict.trace.trace``.

    """
    from bench import built  # why here: see _predicted
    from bench.predict import trace
    from zo_core.base import Unsupported

    models: list[ModelFacts] = []

    def build(spec: RunSpec) -> built.Built:
        made = built.build(spec)
        models.append(made.facts)
        return made

    try:
        with patch.object(trace, "build", build), _stepping(reference, models):
            log = trace.trace(request)
    except (Unsupported, ValueError) as error:
        raise UserError(str(error)) from None
    return log, models[-1]


def _stepping(reference: str, built: list[ModelFacts]) -> AbstractContextManager[object]:
    from bench.predict import reference as papers  # why here: see _predicted
    from bench.predict import trace

    if not reference:
        return nullcontext()
    return patch.object(trace, "run", papers.run_of(reference, built))


def of_log(request: Request, log: Log, model: ModelFacts, layers: int) -> Prediction:
    """Return the prediction that a log of a whole trace makes."""
    from bench.predict import calibration
    from bench.predict.figures import all_figures
    from bench.predict.prediction import ARCHITECTURES

    spaces, parallel = calibration.read(), request.parallel
    ranks = parallel.ranks if parallel else 1
    made: dict[int, tuple[object, ...]] = {}
    figures = {}
    for kind in ARCHITECTURES:
        # Replays cost more than the trace of a large model: once for each size of workspace.
        size = spaces.workspace_of(kind) if request.emulate == "cuda" else 0
        if size not in made:
            constants = replace(spaces, workspace={"default": size})
            stages = range(parallel.count) if parallel and ranks == 1 else [0]
            own = all_figures(log, devices=stages, calibration=constants, ranks=ranks)
            others = [replace(own[0], device=rank) for rank in range(1, ranks)]
            made[size] = (*own, *others)
        figures[kind] = made[size]
    return Prediction(
        spec=request.spec,
        emulate=request.emulate,
        model=model,
        layers=layers,
        traced_layers=(layers,),
        steps=min(request.steps, request.spec.steps),
        figures=figures,  # type: ignore[arg-type]
        work=dict(log.work),
        facts=dict(log.facts),
        parallel=parallel,
    )


def _keeps_no_activations(spec: RunSpec) -> bool:
    from bench.built import _DERIVATIVES  # why here: see _predicted
    from zo_core import methods

    method = methods.build(spec.method, **spec.options)
    return not method.needs_gradient and spec.method not in _DERIVATIVES
