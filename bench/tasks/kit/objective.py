"""Which objective and which score a run has, and whether they suit its task and its model."""

from __future__ import annotations

from collections.abc import Sequence

from bench.models import Kind, LoadedModel
from bench.records import RunSpec, UserError, unknown
from bench.records.spec import Objective

CLASSIFICATION: tuple[Objective, ...] = ("label_words", "options", "answer", "head")
"""What a task with one word a class offers, unless its file says otherwise."""

# An encoder, and a masked model where it is not one answer token that is asked for, can't
# continue a text.
_SUITING: dict[Kind, tuple[Objective, ...]] = {
    "causal": CLASSIFICATION,
    "masked": ("label_words", "head"),
    "encoder": ("head",),
}


def choose(spec: RunSpec, offered: Sequence[Objective], loaded: LoadedModel) -> Objective:
    """Return the objective of the run: its own, or the task's first that suits the model.

    ``head`` is only ever asked for by name: the model has to be loaded with it.

    Raises:
        UserError: the task does not offer it, or the model can't be asked so.

    """
    asked = refuse_unoffered(spec, offered)
    suiting = [o for o in offered if o in _SUITING[loaded.kind]]
    if asked is not None and asked in suiting:
        return asked
    unasked = [o for o in suiting if o != "head"]
    if asked is None and unasked:
        return unasked[0]
    article = "an" if loaded.kind == "encoder" else "a"
    what = "encoder" if loaded.kind == "encoder" else f"{loaded.kind} language model"
    choice = f"Choose: {', '.join(suiting)}." if suiting else "Choose a causal language model."
    raise UserError(
        f"Model '{loaded.facts.name}' is {article} {what}, which task '{spec.task}' can't ask "
        f"with objective = '{asked or offered[0]}'. {choice}"
    )


def refuse_unoffered(spec: RunSpec, offered: Sequence[Objective]) -> Objective | None:
    """Return the objective that the run names, if the task offers it.

    Raises:
        UserError: it does not.

    """
    if spec.objective is not None and not offered:
        raise UserError(
            f"Task '{spec.task}' has one loss of its own. Remove objective = '{spec.objective}'."
        )
    if spec.objective is not None and spec.objective not in offered:
        raise unknown(f"objective of task '{spec.task}'", spec.objective, offered)
    return spec.objective


def refuse_score(spec: RunSpec, offered: Sequence[str]) -> None:
    """Refuse a score that the objective can't be turned into.

    Raises:
        UserError: it is none of ``offered``.

    """
    if spec.score not in offered:
        raise UserError(
            f"score = '{spec.score}' can't be had from task '{spec.task}' with this objective. "
            f"Choose: {', '.join(offered)}."
        )
