r"""Objective ``options``: which of a few texts does the model expect as the answer?

MeZO (Malladi et al., 2023, appendix E.4) with OPT: an option counts by the mean log-likelihood of
its tokens after the question (so that long ones are not at a disadvantage), and the loss is the
cross-entropy over these numbers::

    s_c = 1/|a_c| sum_t log p(a_ct | question, a_c<t)
    L   = -log softmax(s)[right]

Options that differ in nothing but their last token (" terrible", " great", or "\nNo", "\nYes") are
all read off one sequence: what the model is given is the same for each of them.
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
class Options:
    """A ``Chooser``: a sequence for each option; all examples have the same number of them."""

    loaded: LoadedModel
    device: str

    def collate(self, rows: Sequence[Encoded], chosen: tuple[int, ...]) -> Batch:
        """See ``Chooser.collate``. R = B where options share their sequence, else B * C."""
        sequences = [rows[i].sequences for i in chosen]
        inputs, answers = pad_answers(self.loaded, sequences, self.device)
        labels = tensor([rows[i].label for i in chosen], self.device)
        return Batch(examples=chosen, targets=labels, answers=answers, **inputs)

    def logits(self, module: nn.Module, batch: Batch) -> Tensor:
        """See ``Chooser.logits``: mean log-likelihoods."""
        return -answer_losses(module, batch).view(len(batch.examples), -1)
