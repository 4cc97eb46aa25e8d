"""What a step minimises: a task's loss on a minibatch, as the engine wants it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bench.records import RunSpec
from zo_core import Closure

if TYPE_CHECKING:
    from bench.tasks import Batch, Task


class Seen:
    """Counts the examples that forward passes were made for."""

    def __init__(self) -> None:
        """Begin with none."""
        self.examples = 0

    def passes(self, batch: Batch) -> int:
        """Return how many minibatches they are: an anchor set is as many as it takes."""
        return math.ceil(self.examples / len(batch.examples))


def objective(spec: RunSpec, task: Task, module: Any, batch: Batch, seen: Seen) -> Closure:
    """Return the objective of one step: micro-batches, anchor set and mixed precision as asked."""

    def part(one: Batch) -> tuple[float, Callable[[], Tensor]]:
        def loss() -> Tensor:
            seen.examples += len(one.examples)
            with precision(spec):
                return task.loss(module, one)

        return float(len(one.examples)), loss

    def tiled(copies: int) -> Tensor:
        totals = []
        seen.examples += copies * len(batch.examples)
        for one in task.micro_batches(batch):
            with precision(spec):
                losses = task.losses(module, task.tiled(one, copies))
            totals.append(losses.view(copies, -1).double().sum(1))
        return torch.stack(totals).sum(0) / len(batch.examples)

    return Closure(
        [part(one) for one in task.micro_batches(batch)],
        _Lazy(lambda: [part(one) for one in task.anchor()]),
        tiled=tiled,
        differentiable=task.differentiable,
    )


def precision(spec: RunSpec) -> AbstractContextManager[Any]:
    """Return the context of a forward pass: mixed precision where it is asked for."""
    if spec.autocast is None:
        return nullcontext()
    device = torch.device(spec.device).type
    return torch.autocast(device, dtype=getattr(torch, spec.autocast))


class _Lazy(Sequence[Any]):
    """The anchor set's parts, made when a method asks for them and not before."""

    def __init__(self, make: Callable[[], list[Any]]) -> None:
        self._make = make
        self._made: list[Any] | None = None

    def _items(self) -> list[Any]:
        if self._made is None:
            self._made = self._make()
        return self._made

    def __getitem__(self, index: Any) -> Any:
        return self._items()[index]

    def __len__(self) -> int:
        return len(self._items())
