"""Random questions to which the model writes an answer: memory and time of writing.

No data, no tokenizer, nothing padded. A question is exactly ``seq_len`` random tokens, and 50 more
are always written, the most that ``squad`` allows: no token ends an answer here, so that neither
the weights nor a seed decide how long a run takes. Training is on the last tokens of a question as
if they were its answer. Scores mean nothing.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bench.models import LoadedModel
from bench.records import RunSpec, TaskFacts, UserError
from bench.records.spec import Objective
from bench.tasks.kit.values import Task

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.tasks.kit.encode import Encoded

TITLE = "random questions, 50 tokens written to each: memory and time of writing, without data"
OBJECTIVES: tuple[Objective, ...] = ("answer",)

_SPECIAL = 4  # as in random_tokens
_ANSWER = 8  # tokens that are trained on


def build(spec: RunSpec, loaded: LoadedModel) -> Task:
    """Return the task of one run, for any causal language model.

    Raises:
        UserError: the model writes no text, the run wants a prompt or another objective or score,
            or ``seq_len`` is too short, or leaves no room for what is written.

    """
    # Why here: they import torch, and `zometer list tasks` reads this file.
    from bench.tasks.kit.assemble import digest, refuse_prompt, writing
    from bench.tasks.kit.generation import NEW_TOKENS
    from bench.tasks.kit.objective import choose

    objective = choose(spec, OBJECTIVES, loaded)
    refuse_prompt(spec)
    longest = loaded.context - NEW_TOKENS
    if not _ANSWER < spec.seq_len <= longest:
        raise UserError(
            f"Task 'random_answers' needs seq_len from {_ANSWER + 1} to {longest} with model "
            f"'{loaded.facts.name}', which takes {loaded.context} tokens, {NEW_TOKENS} of them "
            f"written; got {spec.seq_len}."
        )
    train = [_question(spec, loaded, "train", i) for i in range(spec.train_examples)]
    heldback = [_question(spec, loaded, "held back", i) for i in range(spec.eval_examples)]
    facts = TaskFacts(
        name=spec.task,
        source=f"token ids drawn from seed {spec.seed}",
        objective=objective,
        prompt=None,
        labels=[],
        train_n=len(train),
        eval_n=len(heldback),
        eval_labels=[],
        eval_digest=digest([e.ids for e in heldback]),
    )
    unread: Any = _Unread()  # nothing but this task uses it, which asks no more than it has
    sets = [(rows, [("",)] * len(rows)) for rows in (train, heldback)]
    return writing(facts, spec, replace(loaded, tokenizer=unread), *sets)


class _Unread:
    """Stands where a tokenizer would: ids are their own text, and none ends it."""

    eos_token_id = None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return no ids: no text is known."""
        return []

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """Return the numbers."""
        return " ".join(map(str, ids))


def _question(spec: RunSpec, loaded: LoadedModel, part: str, index: int) -> Encoded:
    from bench.tasks.kit.encode import Encoded  # why here: see build

    draw = random.Random(f"answers {part} {spec.seed} {index}")
    ids = tuple(draw.choices(range(_SPECIAL, loaded.vocabulary), k=spec.seq_len))
    return Encoded(ids, 0, len(ids) - 1, ((ids, _ANSWER),))
