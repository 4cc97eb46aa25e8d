"""Classification by label words: which of a few tokens does the model expect as the answer?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from bench.models import LoadedModel
from bench.records import RunSpec, TaskFacts
from bench.tasks.kit.encode import Encoded
from bench.tasks.kit.forward import class_logits
from bench.tasks.kit.order import batch_indices
from bench.tasks.kit.values import Batch, Evaluated

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class LabelWords:
    """A ``Task``: cross-entropy over the label words' logits, in float32.

    Causal models answer after the last token (sequences are padded on the left), masked ones at
    the mask token (padded on the right).
    """

    facts: TaskFacts
    spec: RunSpec
    loaded: LoadedModel
    train: Sequence[Encoded]
    heldback: Sequence[Encoded]
    candidates: tuple[int, ...]
    """Token of each class."""

    def batch(self, step: int) -> Batch:
        """See ``Task.batch``. T is the longest sequence of the minibatch."""
        spec = self.spec
        chosen = batch_indices(len(self.train), spec.batch_size, spec.seed, step)
        return self._collate(self.train, chosen)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """See ``Task.loss``. Scratch: logits of B positions, not of B * T."""
        logits = class_logits(module, self.loaded.kind, batch)
        return F.cross_entropy(logits, batch.targets)

    def evaluate(self, module: nn.Module) -> Evaluated:
        """See ``Task.evaluate``. Similar lengths share a batch; the order of results is kept."""
        if not self.heldback:
            raise ValueError("this run has nothing to evaluate: eval_examples is 0")
        was_training = module.training
        module.eval()
        try:
            with torch.inference_mode():
                return self._evaluated(module)
        finally:
            module.train(was_training)

    def _evaluated(self, module: nn.Module) -> Evaluated:
        predictions = [-1] * len(self.heldback)
        loss = 0.0
        for batch in self._heldback_batches():
            logits = class_logits(module, self.loaded.kind, batch)
            loss += F.cross_entropy(logits, batch.targets, reduction="sum").item()
            for example, label in zip(batch.examples, logits.argmax(1).tolist(), strict=True):
                predictions[example] = label
        right = [p == e.label for p, e in zip(predictions, self.heldback, strict=True)]
        return Evaluated(len(right), sum(right), loss / len(right), predictions)

    def _heldback_batches(self) -> Iterator[Batch]:
        by_length = sorted(range(len(self.heldback)), key=lambda i: len(self.heldback[i].ids))
        size = self.spec.eval_batch_size
        for start in range(0, len(by_length), size):
            yield self._collate(self.heldback, tuple(by_length[start : start + size]))

    def _collate(self, source: Sequence[Encoded], chosen: tuple[int, ...]) -> Batch:
        rows = [source[i] for i in chosen]
        longest = max(len(row.ids) for row in rows)
        pads = [longest - len(row.ids) for row in rows]
        left = self.loaded.kind == "causal"

        def tensor(values: Sequence[object]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=self.spec.device)

        def padded(filler: int, content: Sequence[Sequence[int]]) -> Tensor:
            fill = [[filler] * pad for pad in pads]
            sides = zip(fill, content, strict=True)
            return tensor([[*f, *c] if left else [*c, *f] for f, c in sides])

        some = any(pads)
        return Batch(
            examples=chosen,
            input_ids=padded(self.loaded.pad_id, [row.ids for row in rows]),
            targets=tensor([row.label for row in rows]),
            attention_mask=padded(0, [[1] * len(row.ids) for row in rows]) if some else None,
            # On the right padding moves nothing, and RoBERTa counts for itself.
            position_ids=padded(0, [range(len(r.ids)) for r in rows]) if some and left else None,
            answer_at=None if left else tensor([row.answer_at for row in rows]),
            candidates=tensor(self.candidates),
        )
