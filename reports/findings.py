"""What the numbers say, in sentences: computed, never written by hand, and no more than holds.

A sentence names its conditions. Methods within noise of one another are not ranked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby

from bench.records import Failure
from reports import checks, headline, misgivings, stats, units
from reports.comparisons import Comparison, compare
from reports.configurations import Configuration, configurations
from reports.doubts import doubts
from reports.headline import BASES
from reports.load import Tables

LOPSIDED = 0.9
"""Share of one and the same answer from which on zero-shot is called lopsided."""
MOST_PAIRS, MOST_WALLS, MOST_NAMES = 6, 4, 8
"""Pairs of methods, walls, and names in one sentence, for each section; tables have them all."""


@dataclass(frozen=True)
class Finding:
    """One sentence or two. Words between backticks are names from the record."""

    kind: str
    """``outcome``, ``invalid``, ``memory``, ``accuracy``, ``time`` or ``doubt``."""
    text: str


def findings(tables: Tables) -> list[Finding]:
    """Return the findings of all sections, outcomes and doubts of the whole folder around them."""
    found = [*_outcomes(tables)]
    found += [Finding("invalid", text) for text in misgivings.invalid(tables)]
    for section in tables.sections():
        part = tables.only(section)
        valid = part.valid()
        told: list[tuple[str, Callable[[Tables], Iterator[str]], Tables]] = [
            ("memory", _walls, part),  # an invalid run may be out of memory, never the better one
            ("memory", _sizes, valid),
            ("memory", _predictions, valid),
            ("accuracy", _setbacks, valid),
            ("accuracy", _accuracies, part),  # leaves invalid pairs out itself
            ("accuracy", _lopsided, valid),
            ("time", _times, valid),
        ]
        found += [Finding(kind, text) for kind, tell, on in told for text in tell(on)]
    found += [Finding("memory", text) for text in checks.findings(tables.checks)]
    return [*found, *(Finding("doubt", text) for text in misgivings.doubtful(tables))]


def _outcomes(tables: Tables) -> Iterator[Finding]:
    made = [run.record.status for run in tables.entries if not run.is_predicted]
    ended = [status for status in made if status != "completed"]
    total = units.plural(len(made), "run")
    if guessed := len(tables.entries) - len(made):
        yield Finding("outcome", f"{units.plural(guessed, 'run')} predicted, not made.")
    if not ended:
        return
    counts = {status: ended.count(status) for status in dict.fromkeys(ended)}
    ways = ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in counts.items())
    yield Finding("outcome", f"{len(ended)} of {total} did not complete: {ways}.")


def _walls(tables: Tables) -> Iterator[str]:
    """Tell of the configurations out of memory, and of who lived under the same limit."""
    made = configurations(tables)
    walls = [c for c in made if any(r.record.status == "out_of_memory" for r in c.runs)]
    yield from (_wall(c, made) for c in walls[:MOST_WALLS])
    if (more := len(walls) - MOST_WALLS) > 0:
        yield f"{units.plural(more, 'more configuration')} ran out of memory: see the failures."


def _wall(c: Configuration, made: list[Configuration]) -> str:
    record = next(r.record for r in c.runs if r.record.status == "out_of_memory")
    failure = record.failure or Failure(cause="")
    limit = failure.bytes_limit or record.spec.memory_limit_bytes
    asked, used = failure.bytes_requested, failure.bytes_in_use
    where = f"{c.first.series} on `{c.first.spec.model}`"
    told = f"Under a limit of {units.size(limit)}, {where}" if limit else where
    told += " ran out of memory" + (f" in `{failure.phase}`" if failure.phase else "")
    told += f", asking for {units.size(asked)}" if asked is not None else ""
    if (reached := headline.reached(record)) is not None:
        told += f" after reaching {units.size(reached)}"
    elif used is not None:
        told += f" with {units.size(used)} in use"
    marks = [d.name for d in doubts([record]) if d.severity == "invalid"]
    told += f" (flagged invalid: {', '.join(f'`{name}`' for name in marks)})" if marks else ""
    lived = "; ".join(_survived(other) for other in made if _comparable(other, c))
    same = "Under the same limit" if record.spec.memory_limit_bytes else "On the same machine"
    return f"{told}. {same} {lived}." if lived else f"{told}."


def _comparable(other: Configuration, refused: Configuration) -> bool:
    a, b = other.first.spec, refused.first.spec
    same = (a.model, a.task, a.dtype, a.batch_size, a.seq_len, a.memory_limit_bytes) == (
        b.model, b.task, b.dtype, b.batch_size, b.seq_len, b.memory_limit_bytes
    )  # fmt: skip
    same = same and other.first.machine == refused.first.machine
    sound = other.status == "completed" and not any(run.is_invalid for run in other.runs)
    return same and sound and a.method != b.method


def _survived(c: Configuration) -> str:
    peak = f" with a peak of {units.size(c.peak.mean)}" if c.peak else ""
    return f"{c.first.series} completed{peak}"


def _sizes(tables: Tables) -> Iterator[str]:
    """Compare the methods on the largest model that at least two of them completed."""
    made = [c for c in configurations(tables) if c.peak and c.first.parameter_bytes]
    made.sort(key=lambda c: (c.first.parameters or 0, c.first.facet, c.first.peak.basis))
    for _, several in groupby(made[::-1], key=lambda c: (c.first.facet, c.first.peak.basis)):
        alike = sorted(several, key=lambda c: c.peak.mean if c.peak else 0)
        if len({c.first.spec.method for c in alike}) < 2:
            continue
        first, weights = alike[0].first, alike[0].first.parameter_bytes or 1
        each = _listed(
            [
                f"{c.first.series} {units.size(c.peak.mean)} ({c.peak.mean / weights:.1f})"
                for c in alike
                if c.peak
            ]
        )
        count = units.count(first.parameters or 0)
        basis = BASES[next(r.peak.basis for r in alike[0].runs if r.peak.bytes is not None)]
        yield f"On `{first.spec.model}` ({count} parameters), {basis} (times the weights): {each}."
        return


def _predictions(tables: Tables) -> Iterator[str]:
    errors = [
        run.predicted.bytes / run.peak.bytes - 1
        for run in tables.entries
        if run.peak.bytes and run.predicted.bytes and run.peak.basis == run.predicted.basis
    ]
    if errors:
        between = _range([f"{units.signed(100 * e)} %" for e in (min(errors), max(errors))])
        runs = units.plural(len(errors), "run")
        yield f"Predicted peaks differ from measured ones by {between} ({runs})."


def _listed(texts: list[str]) -> str:
    """Return texts that are in order, joined; of many the first, the last, and how many between.

    >>> _listed([str(i) for i in range(9)])
    '0, then 7 others, up to 8'

    """
    if len(texts) <= MOST_NAMES:
        return ", ".join(texts)
    return f"{texts[0]}, then {len(texts) - 2} others, up to {texts[-1]}"


def _setbacks(tables: Tables) -> Iterator[str]:
    """Tell of the configurations that answer worse after training than before it."""
    changes = [(c.change.mean, c) for c in configurations(tables) if c.change]
    worse = sorted((d, c.first.facet, c.first.series) for d, c in changes if d < 0)
    if not worse:
        return
    several = {c.first.facet for _, c in changes}
    told = [f"{name}{f' on `{where}`' if len(several) > 1 else ''} by {-100 * d:.1f}"
            for d, where, name in worse[:MOST_NAMES]]  # fmt: skip
    more = f" and {len(worse) - MOST_NAMES} more" if len(worse) > MOST_NAMES else ""
    yield (
        f"{len(worse)} of {units.plural(len(changes), 'trained configuration')} answer worse "
        f"after training than before it, in points of accuracy (mean over seeds): "
        f"{', '.join(told)}{more}."
    )


def _accuracies(tables: Tables) -> Iterator[str]:
    """Tell each pair of methods; several seeds must all agree before one is called better."""
    pairs: dict[tuple[str, str, str], list[Comparison]] = {}
    for c in compare(tables):
        if c.invalid:
            continue  # shown in the table, yet without a verdict
        pairs.setdefault((c.facet, c.a.name, c.b.name), []).append(c)
    told_first = sorted(pairs.values(), key=_undecided)
    for several in told_first[:MOST_PAIRS]:
        yield _verdict(several)
    if (more := len(pairs) - MOST_PAIRS) > 0:
        yield f"{units.plural(more, 'more pair')} of methods: see the paired comparisons."


def _lopsided(tables: Tables) -> Iterator[str]:
    """Tell where the untrained model gives nearly always the same answer."""
    told: set[str] = set()
    for run in tables.entries:
        before, task = run.zero_shot, run.record.task
        if not before or not before.predictions or not task or len(set(task.eval_labels)) < 2:
            continue
        answer, share = stats.majority(before.predictions)
        true = task.eval_labels.count(answer) / len(task.eval_labels)
        if share >= LOPSIDED and run.facet not in told and true < share:
            told.add(run.facet)
            word = task.labels[answer] if answer < len(task.labels) else str(answer)
            yield (
                f"Before training `{run.spec.model}` answers '{word}' to {units.percent(share)} "
                f"of the examples, though that is right for {units.percent(true)}: a gain over "
                "zero-shot may be no more than the repair of a lopsided prompt."
            )


def _undecided(several: list[Comparison]) -> bool:
    """Return whether chance may explain a pair on some seed, or seeds disagree."""
    return not all(c.real for c in several) or len({c.difference > 0 for c in several}) > 1


def _verdict(several: list[Comparison]) -> str:
    """Return the sentence on one pair of methods, over all its pairs of seeds."""
    c = several[0]
    ups = {one.difference > 0 for one in several}
    real = [one.real for one in several]
    differences = sorted(one.difference for one in several)
    p_values = sorted(one.adjusted_p for one in several)
    p = _range([units.probability(x) for x in p_values])
    tested = f"({_counts(several)}; exact McNemar, Holm-adjusted p: {p})"
    if not _undecided(several):
        ahead, behind = (c.b, c.a) if True in ups else (c.a, c.b)
        by = _range([f"{100 * abs(x):.1f}" for x in sorted(differences, key=abs)])
        return (
            f"On `{c.facet}`, {ahead.name} answers better than {behind.name} by {by} points "
            f"{tested}."
        )
    by = _range([units.signed(100 * x) for x in differences])
    why = "beyond noise on some seeds only" if any(real) else "within noise"
    return (
        f"On `{c.facet}`, {c.b.name} against {c.a.name}: {by} points {tested}. "
        f"That is {why}, so they are not ranked."
    )


def _range(texts: list[str]) -> str:
    """Return the first and the last of some sorted numbers, or the one where they read alike."""
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def _counts(several: list[Comparison]) -> str:
    if len(several) > 1:
        return units.plural(len(several), "pair") + " of seeds"
    c = several[0]
    return f"{c.only_b} examples only {c.b.name} gets right, {c.only_a} only {c.a.name}"


def _times(tables: Tables) -> Iterator[str]:
    timed = [c for c in configurations(tables) if c.step_seconds]
    for facet, several in groupby(timed, key=lambda c: c.first.facet):
        alike = list(several)
        medians = [(stats.quartiles(c.step_seconds)[1], c.first.series) for c in alike]
        if len(medians) > MOST_NAMES:
            medians.sort()
        each = _listed([f"{series} {units.duration(median)}" for median, series in medians])
        yield f"Median time of a step on `{facet}` ({alike[0].first.machine}): {each}."
