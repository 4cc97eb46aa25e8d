"""Objective ``label_words``: which of a few tokens does the model expect as the answer?

The prompt-based fine-tuning of Gao et al., 2021, "Making Pre-trained Language Models Better
Few-shot Learners", as MeZO (Malladi et al., 2023) uses it with RoBERTa.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.models import LoadedModel
from bench.tasks.kit.collate import pad, tensor
from bench.tasks.kit.encode import Encoded
from bench.tasks.kit.forward import class_logits
from bench.tasks.kit.values import Batch

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LabelWords:
    """A ``Chooser``: the logits of the label words alone.

    Causal models answer after the last token (sequences are padded on the left), masked ones at
    the mask token (padded on the right).
    """

    loaded: LoadedModel
    device: str
    candidates: tuple[int, ...]
    """Token of each class."""

    def collate(self, rows: Sequence[Encoded], chosen: tuple[int, ...]) -> Batch:
        """See ``Chooser.collate``."""
        taken = [rows[i] for i in chosen]
        masked = self.loaded.kind == "masked"
        return Batch(
            examples=chosen,
            targets=tensor([row.label for row in taken], self.device),
            answer_at=tensor([row.answer_at for row in taken], self.device) if masked else None,
            candidates=tensor(self.candidates, self.device),
            **pad(self.loaded, [row.ids for row in taken], self.device),
        )

    def logits(self, module: nn.Module, batch: Batch) -> Tensor:
        """See ``Chooser.logits``. Scratch: logits of B positions, not of B * T."""
        return class_logits(module, self.loaded.kind, batch)
