"""Who answered better, tested on the same examples: the exact McNemar test, Holm-adjusted.

Runs are paired where they answered the same held-back examples with the same model and prompt.
What several seeds do not agree on, and what chance could bring about, is not ranked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from bench.records import Evaluation, RunRecord
from reports import stats
from reports.load import Tables
from reports.run import Run
from reports.theme import rank, title_of

LEVEL = 0.05
"""An adjusted p-value below this is a difference."""
ZERO_SHOT = "zero_shot"
MOST_ALL = 8
"""Of more contestants than this not all pairs are told, but each against the references."""
_REFERENCES = (ZERO_SHOT, "mezo")


@dataclass(frozen=True)
class Contestant:
    """Final answers under one name, by seed."""

    name: str
    method: str
    answers: dict[int, Evaluation]
    records: dict[int, RunRecord]
    """Of the runs that gave them, by seed."""


@dataclass(frozen=True)
class Comparison:
    """Two contestants on one seed each."""

    facet: str
    a: Contestant
    b: Contestant
    seed_a: int
    seed_b: int
    only_a: int
    """Examples that only ``a`` answers rightly."""
    only_b: int
    n: int
    p: float
    invalid: bool = False
    """Whether one of the two runs is flagged so: then there is no verdict."""
    adjusted_p: float = 1.0
    """1 of an invalid pair, which the others are not adjusted for."""

    @property
    def difference(self) -> float:
        """Accuracy of ``b`` minus that of ``a``, as a fraction."""
        return (self.only_b - self.only_a) / self.n

    @property
    def real(self) -> bool:
        """Whether chance is no good explanation of the difference."""
        return self.adjusted_p < LEVEL


def compare(tables: Tables) -> list[Comparison]:
    """Return every pair of contestants on every pair of seeds, p-values adjusted together."""
    found: list[Comparison] = []
    for facet, labels, contestants in _fields(tables):
        for a, b in _pairs(contestants):
            for seed_a, seed_b in _seeds(a, b):
                x, y = a.answers[seed_a].predictions, b.answers[seed_b].predictions
                only_a, only_b = stats.discordant(x, y, labels)
                p = stats.mcnemar(only_a, only_b)
                two = (a.records[seed_a], b.records[seed_b])
                invalid = any(f.severity == "invalid" for r in two for f in r.flags)
                one = Comparison(
                    facet, a, b, seed_a, seed_b, only_a, only_b, len(labels), p, invalid
                )
                found.append(one)
    adjusted = iter(stats.holm([c.p for c in found if not c.invalid]))
    return [c if c.invalid else replace(c, adjusted_p=next(adjusted)) for c in found]


def _pairs(contestants: list[Contestant]) -> list[tuple[Contestant, Contestant]]:
    """Return all pairs; of many contestants, each with zero-shot and with the first MeZO."""
    if len(contestants) <= MOST_ALL:
        return list(combinations(contestants, 2))
    first = {c.method: c for c in reversed(contestants)}
    references = [first[m] for m in _REFERENCES if m in first] or contestants[:1]
    places = [contestants.index(reference) for reference in references]
    return [
        (reference, other)
        for place, reference in zip(places, references, strict=True)
        for i, other in enumerate(contestants)
        if i not in places or i > place
    ]


def _seeds(a: Contestant, b: Contestant) -> list[tuple[int, int]]:
    """Return the seeds to pair: equal ones; a lone seed meets all seeds of the other."""
    if len(a.answers) == 1 or len(b.answers) == 1:
        return [(x, y) for x in sorted(a.answers) for y in sorted(b.answers)]
    return [(seed, seed) for seed in sorted(a.answers.keys() & b.answers.keys())]


def _fields(tables: Tables) -> Iterator[tuple[str, list[int], list[Contestant]]]:
    """Yield what was asked, the true classes, and who answered."""
    asked: dict[tuple[object, ...], list[Run]] = {}
    for run in tables.entries:
        task = run.record.task
        if run.final and task and len(run.final.predictions) == len(task.eval_labels) > 0:
            question = (run.facet, task.prompt, task.eval_digest, tuple(task.eval_labels))
            asked.setdefault(question, []).append(run)
    for runs in asked.values():
        task = runs[0].record.task
        assert task is not None  # runs without a task were left out above
        yield runs[0].facet, task.eval_labels, _contestants(runs)


def _contestants(runs: list[Run]) -> list[Contestant]:
    """Return the untrained model, once, and every trained configuration."""
    before: dict[int, RunRecord] = {}
    trained: dict[str, Contestant] = {}
    for run in sorted(runs, key=_order):
        if run.final and run.final.step > 0:
            own = Contestant(run.series, run.spec.method, {}, {})
            one = trained.setdefault(run.configuration, own)
            one.answers[run.spec.seed] = run.final
            one.records[run.spec.seed] = run.record
    # All that are not trained answer alike; those of a valid run may speak for them.
    for run in sorted(runs, key=lambda run: (run.is_invalid, _order(run))):
        if run.record.evaluations[0].step == 0:
            before.setdefault(run.spec.seed, run.record)
    zero_shot = _once(before, runs)
    answers = {seed: record.evaluations[0] for seed, record in zero_shot.items()}
    first = [Contestant(title_of(ZERO_SHOT), ZERO_SHOT, answers, zero_shot)] if zero_shot else []
    return [*first, *trained.values()]


def _order(run: Run) -> tuple[tuple[int, str], float, str, str]:
    return rank(run.spec.method), run.spec.lr, run.series, run.spec.measure


def _once(before: dict[int, RunRecord], runs: list[Run]) -> dict[int, RunRecord]:
    """Return the untrained answers: of one seed where all seeds begin with the same weights."""
    random = any(run.record.model and run.record.model.source == "random" for run in runs)
    lowest = min(before, default=0)
    return before if random else {seed: r for seed, r in before.items() if seed == lowest}
