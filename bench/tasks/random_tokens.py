"""Random token ids, every sequence exactly ``seq_len`` long: for memory and time, not accuracy.

No data, no tokenizer, nothing padded. The loss asks for every token: the next one of a causal
model, the token itself of a masked one, over the whole vocabulary. That is the cost of language
modelling; classification by label words takes the logits of one position each.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.models import LoadedModel
from bench.records import RunSpec, TaskFacts, UserError
from bench.records.spec import Objective
from bench.tasks.kit.values import Batch, Evaluated, Task

if TYPE_CHECKING:
    from torch import Tensor, nn

TITLE = "random tokens of exactly seq_len: memory and time of any model, nothing to evaluate"
OBJECTIVES: tuple[
    Objective, ...
] = ()  # the loss is language modelling, whatever the objective is for other tasks

_SPECIAL = 4  # ids of padding, begin and end in OPT, LLaMA and RoBERTa are below; never drawn


def build(spec: RunSpec, loaded: LoadedModel) -> Task:
    """Return the task of one run, for any language model.

    Raises:
        UserError: the run wants an evaluation, a prompt, an objective or another score, or
            ``seq_len`` is beyond the model.

    """
    # Why here: they import torch, and `zometer list tasks` reads this file.
    from bench.tasks.kit.assemble import refuse_prompt, refuse_too_long
    from bench.tasks.kit.objective import refuse_score, refuse_unoffered
    from bench.tasks.kit.sampled import SampledTask

    if spec.eval_examples:
        raise UserError(
            f"Task 'random_tokens' has nothing to evaluate: eval_examples must be 0, not "
            f"{spec.eval_examples}."
        )
    refuse_unoffered(spec, OBJECTIVES)
    refuse_score(spec, ["cross_entropy"])
    refuse_prompt(spec)
    refuse_too_long(spec, loaded)
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
    tokens = RandomTokens(spec, loaded)
    return SampledTask(facts, spec, tokens.collate, tokens.losses, _evaluate)


@dataclass(frozen=True)
class RandomTokens:
    """The sequences of one run; sequence i is a function of (seed, i) alone."""

    spec: RunSpec
    loaded: LoadedModel

    def collate(self, chosen: tuple[int, ...]) -> Batch:
        """Return the batch of the sequences with these indices, (B, seq_len)."""
        import torch  # why here: see build

        from bench.tasks.kit.vocabulary import IGNORED

        rows = [self._sequence(i) for i in chosen]
        causal = self.loaded.kind == "causal"
        asked = [[*row[1:], IGNORED] for row in rows] if causal else rows
        input_ids = torch.tensor(rows, dtype=torch.int64, device=self.spec.device)
        targets = torch.tensor(asked, dtype=torch.int64, device=self.spec.device)
        return Batch(chosen, input_ids, targets)

    def losses(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return each sequence's mean over its tokens; the logits are never there all at once."""
        from bench.tasks.kit.forward import token_losses  # why here: it imports torch

        return token_losses(module, self.loaded.kind, batch)

    def _sequence(self, index: int) -> list[int]:
        draw = random.Random(f"tokens {self.spec.seed} {index}")
        return draw.choices(range(_SPECIAL, self.loaded.vocabulary), k=self.spec.seq_len)


def _evaluate(module: nn.Module) -> Evaluated:
    raise ValueError("random tokens have nothing to evaluate")
