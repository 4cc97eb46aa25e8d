"""Objective ``head``: which class does a linear head on the model name? No prompt.

As MeZO-SVRG (Gautam et al., 2024) fine-tunes; the head is ``bench.models.with_head.WithHead``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from bench.models import LoadedModel
from bench.models.quiet import quiet
from bench.records import UserError
from bench.tasks.kit.collate import pad, tensor
from bench.tasks.kit.encode import Encoded, cut_to_fit, tokenizer_of
from bench.tasks.kit.forward import head_logits
from bench.tasks.kit.values import Batch, Example

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Head:
    """A ``Chooser``: the classes of the model's head."""

    loaded: LoadedModel
    device: str

    def collate(self, rows: Sequence[Encoded], chosen: tuple[int, ...]) -> Batch:
        """See ``Chooser.collate``."""
        inputs = pad(self.loaded, [rows[i].ids for i in chosen], self.device)
        labels = tensor([rows[i].label for i in chosen], self.device)
        return Batch(examples=chosen, targets=labels, **inputs)

    def logits(self, module: nn.Module, batch: Batch) -> Tensor:
        """See ``Chooser.logits``. No logits over the vocabulary."""
        return head_logits(module, batch)


def plain(loaded: LoadedModel, example: Example, parts: Sequence[str], seq_len: int) -> Encoded:
    """Return one text or a pair, tokenised as the model's own tokenizer does, without a prompt.

    ``parts`` name fields of the example; ``text`` is cut between words where all is too long.
    A tokenizer without a separator would join a pair without so much as a space: a line break
    stands between them then. (BERT's token types are left at 0: its separator has to do.)

    Raises:
        UserError: the model has no tokenizer, or the other part alone is too long.

    """
    tokenizer = tokenizer_of(loaded)

    def ids_of(text: str) -> list[int]:
        known = {**example.fields, "text": text}
        read = [known[part].strip() for part in parts]
        if tokenizer.sep_token is None:
            read = ["\n".join(read)]
        with quiet():  # it warns of long texts, which are cut here
            return cast("list[int]", tokenizer(*read)["input_ids"])

    ids = ids_of(example.text)
    if len(ids) > seq_len:
        ids = ids_of(cut_to_fit(example.text, ids_of, seq_len))
    if len(ids) > seq_len or not ids:
        raise UserError(
            f"seq_len = {seq_len} leaves no room for text: the other part of a pair takes "
            f"{len(ids_of(''))} tokens. Raise seq_len."
        )
    return Encoded(tuple(ids), example.label, len(ids) - 1)
