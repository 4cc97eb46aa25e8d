"""A made-up task that a tiny random model learns in seconds: which marker is in the sequence?

Sequences of 5 to 8 random token ids, four of them one of two markers: which one is the class. No
data, no tokenizer: for tests, CI, and to see that a method learns at all. The sequences are the
same for every seed. MeZO (lr 3e-3, eps 1e-3, batch 16, 64 train examples) takes opt-tiny,
llama-tiny and roberta-tiny to 199 of 200 or more in 400 steps, 2 or 3 CPU-seconds.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from bench.models import LoadedModel
from bench.records import RunSpec, TaskFacts, UserError
from bench.records.spec import Objective
from bench.tasks.kit.values import Task

if TYPE_CHECKING:
    from bench.tasks.kit.encode import Encoded

TITLE = "which of two markers is in the sequence? Made up; tiny random models learn it in seconds"

# Token ids. The first four are special in OPT, LLaMA and RoBERTa.
_MARKERS = (4, 5)
_ANSWERS = (6, 7)
_QUESTION = 8  # the last token, where the answer is asked: the "mask" of a masked model
_FIRST_FILLER = 9
_SHORTEST, _LONGEST = 5, 8
_FILLERS = 64
_COPIES = 4
OBJECTIVES: tuple[Objective, ...] = ("label_words", "options", "answer", "head")
CLASSES = 2

_HELD_BACK = 1000


def build(spec: RunSpec, loaded: LoadedModel) -> Task:
    """Return the task of one run, for any model with 73 tokens or more.

    Raises:
        UserError: the run wants a prompt, ``seq_len`` is below 8 or beyond the model, or the
            objective does not suit the model or the score.

    """
    # Why here: they import torch, and `zometer list tasks` reads this file.
    from bench.tasks.kit.assemble import choice, digest, refuse_prompt, refuse_too_long
    from bench.tasks.kit.objective import choose

    objective = choose(spec, OBJECTIVES, loaded)
    refuse_prompt(spec)
    refuse_too_long(spec, loaded)
    if spec.seq_len < _LONGEST:
        raise UserError(f"Task 'marker' needs seq_len = {_LONGEST} or more, not {spec.seq_len}.")
    train = [_example("train", i) for i in range(spec.train_examples)]
    heldback = [_example("held back", i) for i in range(min(spec.eval_examples, _HELD_BACK))]
    facts = TaskFacts(
        name=spec.task,
        source="made up",
        objective=objective,
        prompt=None,
        labels=[f"token {answer}" for answer in _ANSWERS],
        train_n=len(train),
        eval_n=len(heldback),
        eval_labels=[e.label for e in heldback],
        eval_digest=digest([(e.ids, e.label) for e in heldback]),
    )
    return choice(facts, spec, loaded, train, heldback, _ANSWERS)


def _example(part: str, index: int) -> Encoded:
    from bench.tasks.kit.encode import Encoded  # why here: see build

    draw = random.Random(f"marker {part} {index}")
    label = index % 2
    length = draw.randint(_SHORTEST, _LONGEST)
    ids = [draw.randrange(_FIRST_FILLER, _FIRST_FILLER + _FILLERS) for _ in range(length - 1)]
    for at in draw.sample(range(length - 1), _COPIES):
        ids[at] = _MARKERS[label]
    asked = (*ids, _QUESTION)
    return Encoded(asked, label, length - 1, tuple(((*asked, a), 1) for a in _ANSWERS))
