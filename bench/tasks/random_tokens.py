"""Random token ids, every sequence exactly ``seq_len`` long: for memory and time, not accuracy.

No data, no tokenizer, nothing padded. The loss asks for every token: the next one of a causal
model, the token itself of a masked one, with logits over the whole vocabulary. That is the cost
of language modelling; classification by label words takes the logits of one position each.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.models import LoadedModel
from bench.records import RunSpec, TaskFacts, UserError
from bench.tasks.kit.values import Batch, Evaluated

if TYPE_CHECKING:
    from torch import Tensor, nn

TITLE = "random tokens of exactly seq_len: memory and time of any model, nothing to evaluate"

_SPECIAL = 4  # ids of padding, begin and end in OPT, LLaMA and RoBERTa are below; never drawn


@dataclass(frozen=True)
class RandomTokens:
    """A ``Task`` without evaluation. Sequence i is a function of (seed, i) alone."""

    facts: TaskFacts
    spec: RunSpec
    loaded: LoadedModel

    def batch(self, step: int) -> Batch:
        """See ``Task.batch``. Always (batch_size, seq_len), unless the train set is smaller."""
        import torch  # why here: `zometer list tasks` reads this file

        from bench.tasks.kit.forward import IGNORED
        from bench.tasks.kit.order import batch_indices

        spec = self.spec
        chosen = batch_indices(spec.train_examples, spec.batch_size, spec.seed, step)
        rows = [self._sequence(i) for i in chosen]
        causal = self.loaded.kind == "causal"
        asked = [[*row[1:], IGNORED] for row in rows] if causal else rows
        input_ids = torch.tensor(rows, dtype=torch.int64, device=spec.device)
        targets = torch.tensor(asked, dtype=torch.int64, device=spec.device)
        return Batch(chosen, input_ids, targets)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """See ``Task.loss``. Scratch: logits of all B * T positions, in float32."""
        from bench.tasks.kit.forward import token_loss  # why here: it imports torch

        return token_loss(module, self.loaded.kind, batch)

    def evaluate(self, module: nn.Module) -> Evaluated:
        """Raise: there is nothing to evaluate."""
        raise ValueError("random tokens have nothing to evaluate")

    def _sequence(self, index: int) -> list[int]:
        draw = random.Random(f"tokens {self.spec.seed} {index}")
        return draw.choices(range(_SPECIAL, self.loaded.vocabulary), k=self.spec.seq_len)


def build(spec: RunSpec, loaded: LoadedModel) -> RandomTokens:
    """Return the task of one run.

    Raises:
        UserError: the run wants an evaluation or a prompt, or sequences the model can't take.

    """
    from bench.tasks.kit.classification import refuse_prompt, refuse_too_long  # why: torch

    refuse_prompt(spec)
    refuse_too_long(spec, loaded)
    if spec.eval_examples:
        raise UserError(
            f"Task 'random_tokens' has nothing to evaluate: eval_examples must be 0, not "
            f"{spec.eval_examples}."
        )
    if spec.seq_len < 2 and loaded.kind == "causal":
        raise UserError("Task 'random_tokens' asks for the next token: seq_len must be 2 or more.")
    facts = TaskFacts(
        name=spec.task,
        source=f"token ids drawn from seed {spec.seed}",
        prompt=None,
        labels=[],
        train_n=spec.train_examples,
        eval_n=0,
        eval_labels=[],
        eval_digest=None,
    )
    return RandomTokens(facts, spec, loaded)
