"""Several seeds of one configuration, brought to one row without hiding their spread.

Memory comes from the memory runs of a configuration where there are any, time and accuracy from
its time runs; each number says how many runs it stands on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from bench.records import RunRecord
from reports import headline, stats
from reports.doubts import doubts, in_short
from reports.load import Tables
from reports.run import Run
from reports.theme import rank


@dataclass(frozen=True)
class Spread:
    """A number over runs: mean, sample standard deviation (None of one run), how many runs."""

    mean: float
    sd: float | None
    n: int

    @property
    def half_interval(self) -> float | None:
        """Half the 95 % interval of the mean (Student's); None of one run."""
        return stats.half_interval(self.sd, self.n)


@dataclass(frozen=True)
class Configuration:
    """Runs that differ in seed or in what was measured, and in nothing else."""

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """The run that speaks for what all have in common."""
        return next((run for run in self.runs if run.record.model), self.runs[0])

    @property
    def completed(self) -> list[Run]:
        """Its runs that completed."""
        return [run for run in self.runs if run.record.status == "completed"]

    @property
    def uncompleted(self) -> list[Run]:
        """Its runs that did not complete."""
        return [run for run in self.runs if run.record.status != "completed"]

    @property
    def seeds(self) -> int:
        """How many different seeds were run."""
        return len({run.spec.seed for run in self.runs})

    @property
    def status(self) -> str:
        """``completed``, or how the first run that did not complete ended."""
        return self.uncompleted[0].record.status if self.uncompleted else "completed"

    def measured(self, kind: str) -> list[Run]:
        """Return the completed runs of one kind, or all of them where that kind is missing."""
        return [run for run in self.completed if run.spec.measure == kind] or self.completed

    @property
    def peak(self) -> Spread | None:
        """Memory headline in bytes."""
        return spread(run.peak.bytes for run in self.measured("memory"))

    @property
    def absolute_peak(self) -> Spread | None:
        """Peak with everything that was in memory before, in bytes."""
        return spread(run.peak.absolute_bytes for run in self.measured("memory"))

    @property
    def predicted_peak(self) -> Spread | None:
        """Memory headline in bytes, computed without running."""
        return spread(run.predicted.bytes for run in self.runs)

    @property
    def predicted_live(self) -> Spread | None:
        """Peak of live tensors on the host in bytes, computed without running."""
        found = [headline.live(run.record.predicted) for run in self.runs]
        return spread(m.value for m in found if m)

    @property
    def live(self) -> Spread | None:
        """The same, measured in the runs that it was predicted for."""
        guessed = [r for r in self.measured("memory") if headline.live(r.record.predicted)]
        found = [headline.live(run.record.measurements) for run in guessed]
        return spread(m.value for m in found if m)

    @property
    def peak_quality(self) -> str:
        """The least trusted quality among the peaks that the mean stands on."""
        peaks = [run.peak for run in self.measured("memory") if run.peak.bytes is not None]
        return headline.worst(peak.quality for peak in peaks)

    @property
    def step_seconds(self) -> list[float]:
        """Seconds of every step after the warm-up, of all completed time runs."""
        return [seconds for run in self.completed for seconds in steady_seconds(run)]

    @property
    def train_seconds(self) -> Spread | None:
        """Seconds spent in steps, warm-up included, of completed time runs."""
        timed = [run.record.steps.seconds for run in self.completed if timed_steps(run)]
        return spread(math.fsum(seconds) for seconds in timed if seconds)

    @property
    def accuracy(self) -> Spread | None:
        """Share of right answers after the last step."""
        finals = [run.final for run in self.measured("time")]
        return spread(e.correct / e.n for e in finals if e and e.n)

    @property
    def zero_shot(self) -> Spread | None:
        """Share of right answers before any step, on the same prompt and examples."""
        before = [run.zero_shot for run in self.measured("time") or self.runs]
        return spread(e.correct / e.n for e in before if e and e.n)

    @property
    def change(self) -> Spread | None:
        """Share of right answers gained since before the first step, each run against its own."""
        pairs = [(run.zero_shot, run.final) for run in self.measured("time")]
        return spread(
            after.correct / after.n - before.correct / before.n
            for before, after in pairs
            if before and after and before.n and after.n and after.step > 0
        )

    @property
    def final_loss(self) -> Spread | None:
        """Loss on the held-back examples after the last step, in nats."""
        return spread(run.final.loss for run in self.measured("time") if run.final)

    @property
    def written_score(self) -> Spread | None:
        """Mean token F1 of written answers after the last step, as a fraction."""
        finals = [run.final for run in self.measured("time")]
        return spread(fmean(e.scores) for e in finals if e and e.scores)

    def metric(self, name: str) -> Spread | None:
        """Return a measured number over all runs that have it, in whichever phase."""
        return spread(
            m.value for run in self.runs for m in run.record.measurements if m.metric == name
        )

    def declared(self, field: str) -> int | None:
        """Return what the method declares; the most where runs differ."""
        told = [getattr(run.record.declared, field) for run in self.runs if run.record.declared]
        return max(told, default=None)

    def spent(self, field: Literal["queries", "backwards"]) -> Spread | None:
        """Return what its runs spent on training, those that did not complete included."""
        several = [getattr(run.record.steps, field) for run in self.runs]
        return spread(sum(steps) for steps in several if steps)

    @property
    def ended(self) -> list[str]:
        """How the runs ended that did not complete, and why, once each."""
        return [
            f"{ended}{_of_seeds(seeds)}: {reason}" for (ended, reason), seeds in self._ends.items()
        ]

    @property
    def _ends(self) -> dict[tuple[str, str], list[int]]:
        found: dict[tuple[str, str], list[int]] = {}
        for run in self.uncompleted:
            found.setdefault((run.ended, run.record.reason), []).append(run.spec.seed)
        return found

    @property
    def records(self) -> list[RunRecord]:
        """The records of its runs."""
        return [run.record for run in self.runs]

    @property
    def doubts(self) -> list[str]:
        """What its runs are flagged with, in short, gravest first."""
        return in_short(doubts(self.records))


def _of_seeds(seeds: Sequence[int]) -> str:
    word = "seed" if len(set(seeds)) == 1 else "seeds"
    return f" ({word} {', '.join(map(str, sorted(set(seeds))))})"


def configurations(tables: Tables) -> list[Configuration]:
    """Return the configurations: by section, model size, method, then setting."""
    grouped: dict[str, list[Run]] = {}
    for run in tables.entries:
        grouped.setdefault(run.configuration, []).append(run)
    sections = tables.sections()
    made = [Configuration(tuple(sorted(runs, key=_by_seed))) for runs in grouped.values()]
    return sorted(made, key=lambda c: (sections.index(c.first.section), *_place(c.first)))


def spread(values: Iterable[float | None]) -> Spread | None:
    """Return mean and spread of the values that are there, or None where none is."""
    present = [float(value) for value in values if value is not None]
    return Spread(*stats.mean_sd(present), len(present)) if present else None


def timed_steps(run: Run) -> bool:
    """Return whether the times of its steps mean something."""
    return run.spec.measure == "time" and bool(run.record.steps.seconds)


def steady_seconds(run: Run) -> Sequence[float]:
    """Return the seconds of the steps after the warm-up; none for a memory run."""
    seconds = run.record.steps.seconds
    return seconds[run.spec.warmup_steps :] if seconds and timed_steps(run) else []


def _by_seed(run: Run) -> tuple[int, str, str]:
    return run.spec.seed, run.spec.measure, run.record.key


def _place(run: Run) -> tuple[float, str, tuple[int, str], float, str, str]:
    size = run.parameters if run.parameters is not None else math.inf
    method = rank(run.spec.method)
    return size, run.spec.model, method, run.spec.lr, run.setting, run.configuration
