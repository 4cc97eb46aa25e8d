"""CB: does a speaker, in a short discourse, hold a sentence for true? Three classes.

de Marneffe et al., 2019, "The CommitmentBank"; in SuperGLUE. 250 train rows and 56 validation
rows, which are the held-back set. Needs the hub ``aps/super_glue``, or a copy of its files below
``ZOMETER_DATA``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.records.spec import Objective
from bench.tasks.kit.sources import hub_examples, labelled
from bench.tasks.kit.values import Example, Examples, Prompt

TITLE = "CB: is a sentence in a discourse true, untrue, or open? (SuperGLUE; from the hub)"
OBJECTIVES: tuple[Objective, ...] = ("options", "label_words", "answer", "head")
HEAD = ("text", "hypothesis")
PROMPTS = {
    # As in MeZO (Malladi et al., 2023, table 13); the masked form as its RTE.
    "can_we_infer": Prompt(
        'Suppose {text} Can we infer that "{hypothesis}"? Yes, No, or Maybe?',
        ("\nYes", "\nNo", "\nMaybe"),
        masked="{text}?{mask}, {hypothesis}",
    ),
}
DEFAULT_PROMPT = "can_we_infer"

_HUB = "aps/super_glue"


def load_examples() -> Examples:
    """Return the train and the validation split, each in a fixed order.

    Raises:
        UserError: the data set can't be had.

    """
    columns = ["premise", "hypothesis", "label"]
    return hub_examples(_HUB, columns, _pairs, task="cb", config="cb")


def _pairs(rows: Iterable[dict[str, Any]]) -> list[Example]:
    return labelled(rows, "premise", "hypothesis")
