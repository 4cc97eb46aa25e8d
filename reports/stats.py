"""The statistics of the report: small, exact where they can be, without scipy.

Spread over examples is the binomial standard error; spread over seeds is the sample standard
deviation; two sets of answers to the same questions are compared by the exact McNemar test.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence


def standard_error(correct: int, n: int) -> float:
    """Return the binomial standard error of the share ``correct / n``, as a fraction.

    >>> round(standard_error(158, 200), 4)
    0.0288

    """
    share = correct / n
    return math.sqrt(share * (1 - share) / n)


def wilson(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's interval of the share, 95 % by default; holds at 0 and n too.

    >>> [round(x, 3) for x in wilson(10, 10)]
    [0.722, 1.0]

    """
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and sample standard deviation; of one value the latter is None, not 0."""
    if len(values) < 2:
        return values[0], None
    return statistics.fmean(values), statistics.stdev(values)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return first quartile, median and third quartile (linear, inclusive).

    >>> quartiles([1, 2, 3, 4, 5])
    (2.0, 3.0, 4.0)

    """
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def majority(labels: Sequence[int]) -> tuple[int, float]:
    """Return the most frequent class (the smallest of equals) and its share.

    >>> majority([0, 1, 1, 0, 1])
    (1, 0.6)

    """
    counts = Counter(labels)
    best = min(counts, key=lambda label: (-counts[label], label))
    return best, counts[best] / len(labels)


def discordant(a: Sequence[int], b: Sequence[int], labels: Sequence[int]) -> tuple[int, int]:
    """Return how many examples only ``a`` answers rightly, and how many only ``b``.

    >>> discordant([0, 1, 1], [0, 0, 0], [0, 1, 0])
    (1, 1)

    """
    both = list(zip(a, b, labels, strict=True))
    only_a = sum(x == t != y for x, y, t in both)
    only_b = sum(y == t != x for x, y, t in both)
    return only_a, only_b


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the two-sided p-value of the exact McNemar test.

    Under the null hypothesis each discordant example falls to either side with probability 1/2.

    >>> mcnemar(1, 5)
    0.21875

    """
    n = only_a + only_b
    tail: int = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / (1 << n))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number (Holm, 1979), in the order given.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]

    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted
