"""Tasks whose answer is one of C: losses, scores and evaluation, however the model is asked."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F

from bench.tasks.kit.collate import by_length
from bench.tasks.kit.encode import Encoded
from bench.tasks.kit.values import Batch, Evaluated

if TYPE_CHECKING:
    from torch import Tensor, nn

SCORES = ("cross_entropy", "accuracy")


class Chooser(Protocol):
    """How a model is asked to choose: ``LabelWords``, ``Options`` or ``Head``."""

    def collate(self, rows: Sequence[Encoded], chosen: tuple[int, ...]) -> Batch:
        """Return the batch of the rows with these indices; its targets are their labels (B,)."""

    def logits(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the logits of the choices, (B, C) float32; one forward pass."""


def cross_entropy(chooser: Chooser, module: nn.Module, batch: Batch) -> Tensor:  # (B,)
    """Return each example's cross-entropy over the choices, in nats."""
    return F.cross_entropy(chooser.logits(module, batch), batch.targets, reduction="none")


def errors(chooser: Chooser, module: nn.Module, batch: Batch) -> Tensor:  # (B,) float32
    """Return 0 for each example that is answered rightly and 1 for the others: no gradient."""
    return (chooser.logits(module, batch).argmax(1) != batch.targets).float()


def evaluate(
    chooser: Chooser, heldback: Sequence[Encoded], batch_size: int, module: nn.Module
) -> Evaluated:
    """Evaluate on ``heldback``; similar lengths share a batch, the order of results is kept."""
    order = list(by_length(heldback, batch_size))
    losses, labels = [], []
    for chosen in order:
        batch = chooser.collate(heldback, chosen)
        logits = chooser.logits(module, batch)
        losses.append(F.cross_entropy(logits, batch.targets, reduction="none"))
        labels.append(logits.argmax(1))
    # One wait for the device, at the end.
    found = dict(zip(chain.from_iterable(order), torch.cat(labels).tolist(), strict=True))
    predictions = [found[i] for i in range(len(heldback))]
    right = [p == e.label for p, e in zip(predictions, heldback, strict=True)]
    loss = torch.cat(losses).double().mean().item()
    return Evaluated(len(right), sum(right), loss, predictions)
