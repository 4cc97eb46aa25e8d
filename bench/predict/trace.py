"""From a run's specification to the log of its allocations: its own step, on fake tensors.

Model, task, tuning and method are put together and stepped by the code that a live run uses
(``bench.built``, ``bench.objective``, the method itself); what ``bench.worker`` adds, it adds to
its measurements, not to the model's memory. Phases: ``load`` (the model, and the method's first
state), ``train`` and the engine's inner ones, ``evaluate``.

Over several devices (``Request.parallel``) the model is laid out before anything is seen, and its
weights count where they stay: nobody loads a model whole that one device does not hold.

What a trace can't be of: ``ft_adamw_8bit``, whose kernels are not torch's; and of the values that
decide memory, those that no shape tells (how long the text is that a model writes: the longest).
"""

from __future__ import annotations

import gc
import importlib.metadata
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import bench.built
from bench import models
from bench.built import Built, build
from bench.objective import Seen, objective, precision
from bench.predict.emulation import Device, emulated
from bench.predict.log import Log
from bench.predict.parallel import Parallel, refuse
from bench.predict.parallel_laid import Lay, laid_out
from bench.predict.shapes import Shape
from bench.predict.tracer import Tracer
from bench.records import RunSpec, UserError
from bench.schedule import rate
from bench.tasks import Task
from bench.tasks.kit import vocabulary
from zo_core import Params, derive_seed, methods
from zo_core.base import Span

UNTRACEABLE = {"ft_adamw_8bit": "its kernels are those of bitsandbytes, which take real memory"}
"""Methods that can't be traced, and why."""

_SCRATCH = ("perturb", "update")


@dataclass(frozen=True)
class Request:
    """What is to be traced.

    Args:
        spec: the run. Its device says nothing: ``emulate`` does.
        steps: of training that are traced, at most; state is there from the first on, and the
            second is as all others are.
        emulate: the device whose kernels and defaults are taken.
        shape: the model in another depth, or with other attention.
        evaluate: whether a run with ``eval_examples`` evaluates before and after training, as it
            would.
        parallel: the layout over several devices; None: one. Of a pipeline the log has every
            device, of FSDP the first rank, which holds as much as any.

    """

    spec: RunSpec
    steps: int = 2
    emulate: Device = "cuda"
    shape: Shape = field(default_factory=Shape)
    evaluate: bool = True
    parallel: Parallel | None = None


def trace(request: Request) -> Log:
    """Return the log of a run; nothing is computed, and no weights are in memory.

    Process-wide functions are replaced meanwhile, so nothing else may use torch in this process:
    ``bench.predict.predict`` does it in one of its own.

    Raises:
        UserError: something in the spec is unknown, does not go together, or can't be traced.

    """
    spec = _traceable(request.spec)
    if request.parallel is not None:
        refuse(spec, request.parallel)
    log = Log(facts=_facts(request))
    begun = time.perf_counter()
    with ExitStack() as stack:
        stack.enter_context(request.shape.taken())
        tracer = Tracer(log, _component, request.emulate == "cuda")
        stack.enter_context(emulated(request.emulate, tracer))
        stack.enter_context(patch.object(models, "load", _without_weights))
        stack.enter_context(patch.object(bench.built, "_real_ids", _any_ids))
        lay = stack.enter_context(laid_out(spec, request.parallel, tracer))
        stack.enter_context(FakeTensorMode(allow_fallback_kernels=False))  # no real memory
        stack.enter_context(_values())
        stack.enter_context(_head_in_backward(tracer))
        stack.enter_context(tracer.hooks())
        stack.enter_context(tracer)
        run(spec, tracer, steps=request.steps, evaluated=request.evaluate, lay=lay)
        gc.collect()  # a model with adapters goes in circles: seen while there is a tracer
    log.facts["seconds"] = f"{time.perf_counter() - begun:.2f}"
    return log


def step_(spec: RunSpec, built: Built, state: Any, step: int, span: Span) -> Any:
    """Take one step as ``bench.worker`` does, without its clocks; return the next state."""
    batch, seen = built.task.batch(step), Seen()
    looked_at = objective(spec, built.task, built.module, batch, seen)
    built.module.train(built.method.needs_gradient)
    seed, lr = derive_seed(spec.seed, step), rate(spec, step)
    return built.method.step_(built.params, looked_at, state, seed=seed, lr=lr, span=span)[0]


def evaluate(spec: RunSpec, built: Built) -> None:
    """Evaluate as ``bench.worker`` does, and forget what came out."""
    with precision(spec):
        built.task.evaluate(built.module)


class Phases(Protocol):
    """Who is told what a run does: a tracer, or a profiler's marker of a real run."""

    def span(self, phase: str) -> AbstractContextManager[None]:
        """Return a context for what happens in ``phase``."""

    def built(self, module: Any) -> None:
        """Take note of the model."""

    def relabel(self, tensors: Iterable[Tensor], component: str) -> None:
        """Say what the blocks of ``tensors`` turned out to be for."""


def run(
    spec: RunSpec, phases: Phases, *, steps: int, evaluated: bool = True, lay: Lay | None = None
) -> None:
    """Load, evaluate and train: the part of ``bench.worker`` that takes memory."""
    with phases.span("load"):
        if lay is None:
            built = build(spec)
        else:
            built = lay(lambda: build(spec))
            built = replace(built, params=Params.of(built.module))
        phases.relabel([*built.module.parameters(), *built.module.buffers()], "weights")
        state = built.method.init(built.params)
    gc.collect()  # as a memory run does at such a border: wrappers of modules go in circles
    phases.built(built.module)
    phases.relabel(tensors_in(state), "state")
    if evaluated and spec.eval_examples:
        with phases.span("evaluate"):
            evaluate(spec, built)

    @contextmanager
    def span(phase: str) -> Iterator[None]:
        with phases.span(phase):
            yield
            if phase == "backward":
                grads = [p.grad for p in built.params.tensors if p.grad is not None]
                phases.relabel(grads, "gradients")

    for step in range(min(steps, spec.steps)):
        with phases.span("train"):
            state = step_(spec, built, state, step, span)
        phases.relabel(tensors_in(state), "state")
    if evaluated and spec.eval_examples and spec.steps:  # again, beside the optimiser's state
        with phases.span("evaluate"):
            evaluate(spec, built)


def tensors_in(state: Any) -> list[Tensor]:
    """Return the tensors that a method's or an optimiser's state holds, weights left out."""
    found: list[Tensor] = []
    seen: set[int] = set()
    waiting = [state]
    while waiting:
        one = waiting.pop()
        if id(one) in seen or one is None or isinstance(one, str | int | float | type):
            continue
        seen.add(id(one))
        if isinstance(one, Tensor):
            if not isinstance(one, torch.nn.Parameter) and not one.requires_grad:
                found.append(one)
        elif isinstance(one, torch.optim.Optimizer):
            waiting.append(one.state)
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple | set):
            waiting += one
        elif type(one).__module__.startswith("zo_core"):
            waiting += vars(one).values() if hasattr(one, "__dict__") else ()
    return found


def _component(phase: str, module: str) -> str:
    if phase in _SCRATCH:
        return "noise"
    if module.rpartition(".")[2] in ("lm_head", "head", "score", "decoder_head"):
        return "logits"
    return "other" if phase == "load" else "activations"


def _traceable(spec: RunSpec) -> RunSpec:
    if spec.method in UNTRACEABLE:
        raise UserError(
            f"Method '{spec.method}' can't be traced: {UNTRACEABLE[spec.method]}. Its memory is "
            "measured where it runs; to predict, take 'ft_adamw'."
        )
    try:
        methods.build(spec.method, **spec.options)
    except ValueError as error:
        raise UserError(str(error)) from error
    return spec.model_copy(update={"device": "cpu", "memory_limit_bytes": None})


def _without_weights(
    name: str, *, dtype: str, device: str, seed: int, head_classes: int | None = None
) -> models.LoadedModel:
    return models.load_shape(name, dtype=dtype, device=device, head_classes=head_classes)


def _any_ids(task: Task) -> list[list[int]]:
    """Return as many ids as the first training texts may have; which decides no memory."""
    rows, tokens = task.batch(0).input_ids.shape
    return [[0] * tokens for _ in range(rows)]


@contextmanager
def _values() -> Iterator[None]:
    """Let what asks a fake tensor for a list of its values have one."""

    def tolist(tensor: Tensor) -> Any:
        return _nested(list(tensor.shape), 0.0 if tensor.dtype.is_floating_point else 0)

    with patch.object(Tensor, "tolist", tolist):
        yield


def _nested(shape: list[int], value: Any) -> Any:
    if not shape:
        return value
    return [_nested(shape[1:], value) for _ in range(shape[0])]


@contextmanager
def _head_in_backward(tracer: Tracer) -> Iterator[None]:
    """Attribute the backward pass of the loss over the vocabulary to the head."""
    real: Callable[..., Any] = vocabulary._Losses.backward

    def backward(*args: Any) -> Any:
        with tracer.inside("lm_head"):
            return real(*args)

    with patch.object(vocabulary._Losses, "backward", staticmethod(backward)):
        yield


def _facts(request: Request) -> dict[str, str]:
    versions = {f"{p} version": importlib.metadata.version(p) for p in ("torch", "transformers")}
    return {
        "run": request.spec.key,
        "emulate": request.emulate,
        "shape": request.shape.told(),
        "steps": str(min(request.steps, request.spec.steps)),
        "devices": request.parallel.told() if request.parallel else "one",
        "evaluations": "2" if request.spec.steps else "1",
        **versions,
    }
