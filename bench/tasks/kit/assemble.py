"""From encoded examples and an objective to the task of one run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial

from bench.models import LoadedModel
from bench.records import RunSpec, TaskFacts, UserError
from bench.records.spec import Objective
from bench.tasks.kit import choosing, generation
from bench.tasks.kit.answer import Answer
from bench.tasks.kit.choosing import Chooser
from bench.tasks.kit.encode import Encoded
from bench.tasks.kit.head import Head
from bench.tasks.kit.label_words import LabelWords
from bench.tasks.kit.objective import refuse_score
from bench.tasks.kit.options import Options
from bench.tasks.kit.sampled import SampledTask


def choice(
    facts: TaskFacts,
    spec: RunSpec,
    loaded: LoadedModel,
    train: Sequence[Encoded],
    heldback: Sequence[Encoded],
    candidates: tuple[int, ...] = (),
) -> SampledTask:
    """Return a task whose answer is one of a few; ``facts.objective`` says how it is asked.

    Raises:
        UserError: the score does not go with the objective, or the numbers of options differ.

    """
    asked: dict[Objective, Chooser] = {
        "label_words": LabelWords(loaded, spec.device, candidates),
        "options": Options(loaded, spec.device),
        "answer": Options(loaded, spec.device),
        "head": Head(loaded, spec.device),
    }
    assert facts.objective is not None
    chooser = asked[facts.objective]
    if len({len(row.sequences) for row in (*train, *heldback)}) > 1:
        raise UserError(f"Task '{spec.task}' has examples with more options than others.")
    evaluate = partial(choosing.evaluate, chooser, heldback, spec.eval_batch_size)
    if facts.objective == "answer":
        refuse_score(spec, ["cross_entropy"])
        teacher = Answer(loaded, spec.device)
        return SampledTask(facts, spec, partial(teacher.collate, train), teacher.losses, evaluate)
    refuse_score(spec, choosing.SCORES)
    score = choosing.errors if spec.score == "accuracy" else choosing.cross_entropy
    collate = partial(chooser.collate, train)
    return SampledTask(facts, spec, collate, partial(score, chooser), evaluate)


def writing(
    facts: TaskFacts,
    spec: RunSpec,
    loaded: LoadedModel,
    train: tuple[Sequence[Encoded], Sequence[Sequence[str]]],
    heldback: tuple[Sequence[Encoded], Sequence[Sequence[str]]],
) -> SampledTask:
    """Return a task whose answer is written: rows and their right answers, of both sets.

    Raises:
        UserError: the score is none of such a task.

    """
    refuse_score(spec, generation.SCORES)
    evaluate = partial(
        generation.Generation(loaded, spec.device, *heldback).evaluate, spec.eval_batch_size
    )
    if spec.score == "f1":
        writer = generation.Generation(loaded, spec.device, *train)
        return SampledTask(facts, spec, writer.collate, writer.misses, evaluate)
    teacher = Answer(loaded, spec.device)
    return SampledTask(facts, spec, partial(teacher.collate, train[0]), teacher.losses, evaluate)


def refuse_too_long(spec: RunSpec, loaded: LoadedModel) -> None:
    """Refuse sequences that the model can't take.

    Raises:
        UserError: ``seq_len`` is beyond the model's context.

    """
    if spec.seq_len > loaded.context:
        raise UserError(
            f"seq_len = {spec.seq_len} is longer than model '{loaded.facts.name}' can take: "
            f"{loaded.context} tokens. Lower seq_len."
        )


def refuse_prompt(spec: RunSpec) -> None:
    """Refuse a prompt, and solved examples, where the task has no prompts.

    Raises:
        UserError: the run names one, or asks for demonstrations.

    """
    if spec.prompt is not None:
        raise UserError(f"Task '{spec.task}' has no prompts. Remove prompt = '{spec.prompt}'.")
    if spec.demonstrations:
        raise UserError(
            f"Task '{spec.task}' has no prompts to put solved examples before: demonstrations "
            f"must be 0, not {spec.demonstrations}."
        )


def digest(heldback: Sequence[object]) -> str | None:
    """Return 16 hexadecimal digits that stand for the held-back examples; None without any."""
    if not heldback:
        return None
    return hashlib.sha256(json.dumps(heldback).encode()).hexdigest()[:16]
