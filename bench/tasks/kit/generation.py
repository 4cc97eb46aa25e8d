"""Generation: the model writes its answer, greedily, and is scored by token F1.

As MeZO (Malladi et al., 2023) evaluates SQuAD: up to 50 new tokens, ending at a newline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bench.models import LoadedModel
from bench.tasks.kit.answer import Answer
from bench.tasks.kit.collate import by_length, pad, tensor
from bench.tasks.kit.encode import Encoded, tokenizer_of
from bench.tasks.kit.forward import greedy
from bench.tasks.kit.token_f1 import exact_match, token_f1
from bench.tasks.kit.values import Batch, Evaluated

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

SCORES = ("cross_entropy", "f1")
NEW_TOKENS = 50


@dataclass(frozen=True)
class Generation:
    """One set of examples: their questions, and the answers that count as right."""

    loaded: LoadedModel
    device: str
    rows: Sequence[Encoded]
    answers: Sequence[Sequence[str]]
    """Of each row."""

    def collate(self, chosen: tuple[int, ...]) -> Batch:
        """Return the questions with these indices, without their answers."""
        inputs = pad(self.loaded, [self.rows[i].ids for i in chosen], self.device)
        labels = tensor([self.rows[i].label for i in chosen], self.device)
        return Batch(examples=chosen, targets=labels, **inputs)

    def misses(self, module: nn.Module, batch: Batch) -> Tensor:  # (B,) float32
        """Return one minus each answer's token F1: no gradient, and the device has to wait."""
        scores = [
            token_f1(text, self.answers[i])
            for text, i in zip(self.written(module, batch), batch.examples, strict=True)
        ]
        return 1 - torch.tensor(scores, dtype=torch.float32, device=self.device)

    def evaluate(self, batch_size: int, module: nn.Module) -> Evaluated:
        """Evaluate on all rows; similar lengths share a batch, the order of results is kept."""
        teacher = Answer(self.loaded, self.device)
        given = [""] * len(self.rows)
        loss = 0.0
        for chosen in by_length(self.rows, batch_size):
            loss += teacher.losses(module, teacher.collate(self.rows, chosen)).sum().item()
            for i, text in zip(chosen, self.written(module, self.collate(chosen)), strict=True):
                given[i] = text
        pairs = list(zip(given, self.answers, strict=True))
        return Evaluated(
            n=len(pairs),
            correct=sum(exact_match(*pair) for pair in pairs),
            loss=loss / len(pairs),
            predictions=[],
            scores=[token_f1(*pair) for pair in pairs],
        )

    def written(self, module: nn.Module, batch: Batch) -> list[str]:
        """Return what the model writes after each question, up to the end of the line."""
        tokenizer = tokenizer_of(self.loaded)
        newline = tokenizer.encode("\n", add_special_tokens=False)[-1:]
        end = [t for t in (*newline, tokenizer.eos_token_id) if t is not None]
        tokens = greedy(module, batch, tensor(end, self.device), NEW_TOKENS).tolist()
        return [_line(tokenizer, row, tokenizer.eos_token_id) for row in tokens]


def _line(tokenizer: PreTrainedTokenizerBase, ids: list[int], end: int | None) -> str:
    """Return the text before the first newline or end of text."""
    said = ids[: ids.index(end)] if end in ids else ids
    text = str(tokenizer.decode(said, skip_special_tokens=True))
    # Some tokens are a newline with more: the text decides, not the token that stopped it.
    return text.strip(" ").split("\n")[0].strip()
