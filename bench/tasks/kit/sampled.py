"""Minibatches of a train set, in an order that the seed decides: what all tasks share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from bench.records import RunSpec, TaskFacts
from bench.tasks.kit.order import batch_indices
from bench.tasks.kit.values import Batch, Evaluated

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class SampledTask:
    """A ``Task``, put together from how examples become tensors and tensors a loss."""

    facts: TaskFacts
    spec: RunSpec
    collate: Callable[[tuple[int, ...]], Batch]
    """Makes a batch of the train examples with these indices."""
    per_example: Callable[[nn.Module, Batch], Tensor]
    """See ``Task.losses``."""
    evaluator: Callable[[nn.Module], Evaluated]
    """Evaluates on the held-back examples, in evaluation mode and without gradients."""

    @property
    def differentiable(self) -> bool:
        """See ``Task.differentiable``."""
        return self.spec.score == "cross_entropy"

    def batch(self, step: int) -> Batch:
        """See ``Task.batch``. T is the longest sequence of the minibatch."""
        spec = self.spec
        return self.collate(batch_indices(self.facts.train_n, spec.batch_size, spec.seed, step))

    def micro_batches(self, batch: Batch) -> list[Batch]:
        """See ``Task.micro_batches``."""
        n, size = len(batch.examples), self.spec.micro_batch_size
        if size is None or size >= n:
            return [batch]
        slices = [(start, min(start + size, n)) for start in range(0, n, size)]
        if batch.attention_mask is None:
            return [batch.part(*some) for some in slices]
        return [self.collate(batch.examples[slice(*some)]) for some in slices]  # less padding

    def anchor(self) -> list[Batch]:
        """See ``Task.anchor``."""
        return self._anchor

    @cached_property
    def _anchor(self) -> list[Batch]:
        spec, n = self.spec, self.facts.train_n
        first = range(min(spec.anchor_examples or n, n))
        size = spec.micro_batch_size or spec.batch_size
        return [self.collate(tuple(first[at : at + size])) for at in range(0, len(first), size)]

    def tiled(self, batch: Batch, n: int) -> Batch:
        """See ``Task.tiled``."""
        return batch.tiled(n)

    def losses(self, module: nn.Module, batch: Batch) -> Tensor:
        """See ``Task.losses``."""
        return self.per_example(module, batch)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """See ``Task.loss``."""
        return self.losses(module, batch).mean()

    def evaluate(self, module: nn.Module) -> Evaluated:
        """See ``Task.evaluate``."""
        if not self.facts.eval_n:
            raise ValueError("this run has nothing to evaluate: eval_examples is 0")
        was_training = module.training
        module.eval()
        try:
            with torch.inference_mode():
                return self.evaluator(module)
        finally:
            module.train(was_training)
