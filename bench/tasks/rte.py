"""RTE: does one text follow from another? Two classes.

Dagan et al., 2005, and the challenges after it; in SuperGLUE. 2,490 train rows and 277 validation
rows, which are the held-back set. Needs the hub ``aps/super_glue``, or a copy of its files below
``ZOMETER_DATA``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.records.spec import Objective
from bench.tasks.kit.sources import hub_examples, labelled
from bench.tasks.kit.values import Example, Examples, Prompt

TITLE = "RTE: does one text follow from another? (SuperGLUE; from the hub)"
OBJECTIVES: tuple[Objective, ...] = ("options", "label_words", "answer", "head")
HEAD = ("text", "hypothesis")
PROMPTS = {
    # As in MeZO (Malladi et al., 2023, tables 12 and 13).
    "does_this_mean": Prompt(
        '{text}\nDoes this mean that "{hypothesis}" is true? Yes or No?',
        ("\nYes", "\nNo"),
        masked="{text}?{mask}, {hypothesis}",
    ),
}
DEFAULT_PROMPT = "does_this_mean"

_HUB = "aps/super_glue"


def load_examples() -> Examples:
    """Return the train and the validation split, each in a fixed order.

    Raises:
        UserError: the data set can't be had.

    """
    columns = ["premise", "hypothesis", "label"]
    return hub_examples(_HUB, columns, _pairs, task="rte", config="rte")


def _pairs(rows: Iterable[dict[str, Any]]) -> list[Example]:
    return labelled(rows, "premise", "hypothesis")
