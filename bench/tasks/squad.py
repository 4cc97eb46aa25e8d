"""SQuAD 1.1: write the answer to a question on a passage, word for word. Generation.

Rajpurkar et al., 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", EMNLP.
87,599 train rows and 10,570 validation rows, which are the held-back set. Needs the hub
``rajpurkar/squad``, or a copy of its files below ``ZOMETER_DATA``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.records.spec import Objective
from bench.tasks.kit.sources import hub_examples
from bench.tasks.kit.values import Example, Examples, Prompt

TITLE = "SQuAD 1.1: write the answer to a question on a passage; token F1 (from the hub)"
OBJECTIVES: tuple[Objective, ...] = ("answer",)
# As in MeZO (Malladi et al., 2023, table 13).
PROMPTS = {"lines": Prompt("Title: {title}\nContext: {text}\nQuestion: {question}\nAnswer:")}
DEFAULT_PROMPT = "lines"

_COLUMNS = ["title", "context", "question", "answers"]


def load_examples() -> Examples:
    """Return the train and the validation split, each in a fixed order.

    Raises:
        UserError: the data set can't be had.

    """
    note = "Wikipedia text, CC BY-SA 4.0; rows are read at run time, none are copied."
    return hub_examples(
        "rajpurkar/squad", _COLUMNS, _examples, task="squad", config="plain_text", note=note
    )


def _examples(rows: Iterable[dict[str, Any]]) -> list[Example]:
    return [_example(row) for row in rows]


def _example(row: dict[str, Any]) -> Example:
    return Example(
        row["context"].strip(),
        fields={"title": row["title"], "question": row["question"].strip()},
        answers=tuple(text.strip() for text in row["answers"]["text"]),
    )
