"""How much of an answer is right: exact match and token F1, as SQuAD's own script counts them.

Rajpurkar et al., 2016, "SQuAD", EMNLP, section 6.1. Both are the best over all right answers.

>>> normalised("The Eiffel-Tower, of  Paris!")
'eiffeltower of paris'
>>> round(token_f1("in the old city of Paris", ["Paris", "city of Paris"]), 3)
0.75
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """Return ``text`` in lower case without punctuation, articles and surplus spaces."""
    plain = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def exact_match(given: str, answers: Sequence[str]) -> bool:
    """Return whether ``given`` is one of ``answers``, both normalised."""
    return normalised(given) in map(normalised, answers)


def token_f1(given: str, answers: Sequence[str]) -> float:
    """Return the best F1 between the words of ``given`` and of one of ``answers``: 0 to 1."""
    return max(_f1(normalised(given).split(), normalised(answer).split()) for answer in answers)


def _f1(given: list[str], right: list[str]) -> float:
    if not given or not right:  # nothing said where nothing was to be said
        return float(given == right)
    shared = sum((Counter(given) & Counter(right)).values())
    return 2 * shared / (len(given) + len(right))
