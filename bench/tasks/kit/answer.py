"""Objective ``answer``: teacher forcing on the tokens of the right answer alone.

MeZO (Malladi et al., 2023) trains multiple choice and generation so. An example's loss is the
mean cross-entropy over its answer's tokens; a batch's loss is the mean over its examples (where
MeZO's code takes the mean over all tokens of the batch, long answers weigh more).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.models import LoadedModel
from bench.tasks.kit.collate import pad_answers, tensor
from bench.tasks.kit.encode import Encoded
from bench.tasks.kit.forward import answer_losses
from bench.tasks.kit.values import Batch

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Answer:
    """Batches of questions with their right answers, and the losses of these."""

    loaded: LoadedModel
    device: str

    def collate(self, rows: Sequence[Encoded], chosen: tuple[int, ...]) -> Batch:
        """Return the batch of the rows with these indices; R = B."""
        right = [[rows[i].sequences[rows[i].label]] for i in chosen]
        inputs, answers = pad_answers(self.loaded, right, self.device)
        labels = tensor([rows[i].label for i in chosen], self.device)
        return Batch(examples=chosen, targets=labels, answers=answers, **inputs)

    def losses(self, module: nn.Module, batch: Batch) -> Tensor:  # (B,) float32
        """Return each example's mean cross-entropy per answer token, in nats."""
        return answer_losses(module, batch)
