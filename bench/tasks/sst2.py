"""SST-2: is a sentence or phrase from a film review positive? From the hub, or a local copy.

Socher et al., 2013, "Recursive Deep Models for Semantic Compositionality", EMNLP; in GLUE. 67,349
train rows (phrases among them) and 872 validation rows, which are the held-back set: GLUE keeps
its test labels. Needs the hub ``stanfordnlp/sst2``, or a copy of its files below ``ZOMETER_DATA``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from bench.tasks.kit.sources import hub_examples, labelled
from bench.tasks.kit.values import Example, Examples
from bench.tasks.mr import DEFAULT_PROMPT, PROMPTS

__all__ = ["DEFAULT_PROMPT", "PROMPTS", "TITLE", "load_examples"]

TITLE = "SST-2: film reviews, positive or negative (GLUE; from the hub)"

_HUB = "stanfordnlp/sst2"


def load_examples() -> Examples:
    """Return the train and the validation split, each in a fixed order.

    Raises:
        UserError: the data set can't be had.

    """
    return hub_examples(_HUB, ["sentence", "label"], _sentences, task="sst2")


def _sentences(rows: Iterable[dict[str, Any]]) -> list[Example]:
    return labelled(rows, "sentence")
