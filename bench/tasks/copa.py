"""COPA: which of two sentences is the cause, or the effect, of a third? Multiple choice.

Roemmele et al., 2011, "Choice of Plausible Alternatives", AAAI Spring Symposium; in SuperGLUE.
400 train rows and 100 validation rows, which are the held-back set. Needs the hub
``aps/super_glue``, or a copy of its files below ``ZOMETER_DATA``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.records.spec import Objective
from bench.tasks.kit.sources import hub_examples
from bench.tasks.kit.values import Example, Examples, Prompt

TITLE = "COPA: which of two sentences is the cause or the effect? (SuperGLUE; from the hub)"
OBJECTIVES: tuple[Objective, ...] = ("answer", "options")
# As in MeZO (Malladi et al., 2023, table 13): the premise goes on with an option.
PROMPTS = {"goes_on": Prompt("{text} {conjunction}")}
DEFAULT_PROMPT = "goes_on"

_HUB = "aps/super_glue"
_COLUMNS = ["premise", "choice1", "choice2", "question", "label"]
_CONJUNCTIONS = {"cause": "because", "effect": "so"}


def load_examples() -> Examples:
    """Return the train and the validation split, each in a fixed order.

    Raises:
        UserError: the data set can't be had.

    """
    return hub_examples(_HUB, _COLUMNS, _examples, task="copa", config="copa")


def _examples(rows: Iterable[dict[str, Any]]) -> list[Example]:
    return [_example(row) for row in rows]


def _example(row: dict[str, Any]) -> Example:
    return Example(
        row["premise"].strip().removesuffix("."),
        int(row["label"]),
        fields={"conjunction": _CONJUNCTIONS[row["question"]]},
        options=tuple(f" {_within(row[choice])}" for choice in ("choice1", "choice2")),
    )


def _within(sentence: str) -> str:
    """Return the sentence as it stands within another one: its first word in lower case."""
    first, space, rest = sentence.strip().partition(" ")
    return (first if first == "I" else first.lower()) + space + rest
