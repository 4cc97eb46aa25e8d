"""From a task file's examples and prompts to the task of one run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from bench.models import LoadedModel
from bench.records import RunSpec, TaskFacts, UserError, unknown
from bench.tasks.kit.encode import Encoder
from bench.tasks.kit.label_words import LabelWords
from bench.tasks.kit.values import Examples, Prompt


def classification(
    spec: RunSpec,
    loaded: LoadedModel,
    examples: Examples,
    prompts: Mapping[str, Prompt],
    default_prompt: str,
) -> LabelWords:
    """Return the task: the first ``train_examples`` and ``eval_examples``, or all there are.

    Raises:
        UserError: no such prompt, or it does not suit the model or ``seq_len``.

    """
    name = spec.prompt or default_prompt
    if name not in prompts:
        raise unknown(f"prompt of task '{spec.task}'", name, prompts)
    refuse_too_long(spec, loaded)
    prompt = prompts[name]
    encoder = Encoder(loaded, prompt, name, spec.seq_len)
    train = examples.train[: spec.train_examples]
    heldback = examples.heldback[: spec.eval_examples]
    facts = TaskFacts(
        name=spec.task,
        source=examples.source,
        prompt=name,
        labels=[word.strip() for word in prompt.words],
        train_n=len(train),
        eval_n=len(heldback),
        eval_labels=[e.label for e in heldback],
        eval_digest=digest([(e.text, e.label) for e in heldback]),
        note=examples.note,
    )
    encoded = encoder.encode(train), encoder.encode(heldback)
    return LabelWords(facts, spec, loaded, *encoded, encoder.candidates)


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
    """Refuse a prompt where the task has none.

    Raises:
        UserError: the run names one.

    """
    if spec.prompt is not None:
        raise UserError(f"Task '{spec.task}' has no prompts. Remove prompt = '{spec.prompt}'.")


def digest(heldback: Sequence[object]) -> str | None:
    """Return 16 hexadecimal digits that stand for the held-back examples; None without any."""
    if not heldback:
        return None
    return hashlib.sha256(json.dumps(heldback).encode()).hexdigest()[:16]
