from __future__ import annotations

import math

import pytest

from reports import stats, units


def test_standard_error_is_the_binomial_one() -> None:
    assert stats.standard_error(158, 200) == pytest.approx(math.sqrt(0.79 * 0.21 / 200))


def test_exact_mcnemar_agrees_with_a_table() -> None:
    # 2 * (1 + 10 + 45) / 1024, and no evidence at all where nothing is discordant.
    assert stats.mcnemar(2, 8) == pytest.approx(0.109375)
    assert stats.mcnemar(8, 2) == stats.mcnemar(2, 8)
    assert stats.mcnemar(0, 0) == 1.0
    assert stats.mcnemar(5, 5) == 1.0


def test_mcnemar_holds_for_thousands_of_examples() -> None:
    assert 0 < stats.mcnemar(3000, 3300) < 0.001


def test_discordant_counts_what_only_one_answers_rightly() -> None:
    assert stats.discordant([1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 1, 1]) == (1, 1)


def test_majority_is_the_most_frequent_true_class() -> None:
    assert stats.majority([0] * 102 + [1] * 98) == (0, 0.51)
    assert stats.majority([2, 1]) == (1, 0.5)


def test_spread_of_one_value_is_missing_not_zero() -> None:
    assert stats.mean_sd([3.0]) == (3.0, None)
    assert stats.mean_sd([1.0, 3.0]) == (2.0, pytest.approx(math.sqrt(2)))


def test_quartiles_are_linear() -> None:
    assert stats.quartiles([1, 2, 3, 4]) == (1.75, 2.5, 3.25)


def test_accuracy_reads_as_the_issue_asks() -> None:
    assert units.accuracy(0.79, stats.standard_error(158, 200), 200) == "79.0 % ± 2.9 (n=200)"


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (108 * 2**20, "108 MiB"),
        (2**30 - 1, "1.00 GiB"),
        (int(1.1 * 2**30), "1.10 GiB"),
        (80 * 2**30, "80.0 GiB"),
    ],
)
def test_sizes(n: int, text: str) -> None:
    assert units.size(n) == text
