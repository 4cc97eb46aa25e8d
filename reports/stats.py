"""The statistics of the report: small, exact where they can be, without scipy.

Spread over examples is the binomial standard error; spread over seeds is the sample standard
deviation, or Student's interval of their mean; two sets of answers to the same questions are
compared by the exact McNemar test.
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


def student(freedom: int, level: float = 0.95) -> float:
    """Return Student's t that ``level`` of the distribution lies within, two-sided.

    The probability within t is a finite sum for whole degrees of freedom (Abramowitz and Stegun
    1964, 26.7.3 and 26.7.4); t is found by halving.

    >>> round(student(2), 3), round(student(9), 3)
    (4.303, 2.262)

    """
    low, high = 0.0, 1e6
    while high - low > 1e-9 * max(1.0, low):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < level else (low, middle)
    return high


def _within(t: float, freedom: int) -> float:
    """Return the probability that Student's t lies between -t and t."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    terms = [term]
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * math.cos(angle) ** 2
        terms.append(term)
    total = math.sin(angle) * math.fsum(terms)
    if not odd:
        return total
    return 2 / math.pi * (angle + (total if freedom > 1 else 0.0))


def half_interval(sd: float | None, n: int) -> float | None:
    """Return half the 95 % interval of the mean of ``n`` values; of one value there is none.

    >>> round(half_interval(0.5, 3), 3)
    1.242

    """
    return None if sd is None else student(n - 1) * sd / math.sqrt(n)


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
