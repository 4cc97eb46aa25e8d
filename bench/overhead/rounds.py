"""Rounds: every way of watching in turns, steps that nothing watches between any two."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.overhead.watching import Helper, Step, Watched, watching
from bench.records.monitor_cost import MonitorCase, MonitorSample, Watch, WatchCost
from bench.stepping.clock import Took, timed

WATCHES: tuple[Watch, ...] = ("nothing", "time", "memory")

Told = Callable[[str], None]


@dataclass
class Seen:
    """What the rounds left behind."""

    samples: dict[Watch, list[MonitorSample]] = field(
        default_factory=lambda: {watch: [] for watch in WATCHES}
    )
    shares: list[float] = field(default_factory=list)
    """Of a core, that the sampler took while it ran, a sample each."""

    def watched(self) -> list[WatchCost]:
        """Return the samples by way of watching."""
        return [WatchCost(watch=watch, samples=s) for watch, s in self.samples.items()]


def run(step: Step, case: MonitorCase, told: Told) -> Seen:
    """Take the rounds; one before them is not kept. Every other one runs in reverse order."""
    seen = Seen()
    told("warm-up")
    for watch in WATCHES:
        _one(step, case, watch)
    gc.collect()
    gc.disable()  # a collection in the middle of a sample would be its alone
    try:
        for number in range(case.step.rounds):
            told(f"round {number + 1}/{case.step.rounds}")
            before, _ = _one(step, case, "nothing")
            for watch in order(number):
                took, helper = _one(step, case, watch)
                after, _ = _one(step, case, "nothing")
                seen.samples[watch].append(sample(number, took, before, after, helper))
                if watch == "time" and helper.share is not None:
                    seen.shares.append(helper.share)
                before = after
    finally:
        gc.enable()
    return seen


def order(number: int) -> Sequence[Watch]:
    """Return in which order a round takes them."""
    return WATCHES[::-1] if number % 2 else WATCHES


def sample(number: int, took: Took, before: Took, after: Took, helper: Helper) -> MonitorSample:
    """Put a sample beside the steps around it."""
    return MonitorSample(
        round=number,
        seconds=took.seconds,
        cpu_seconds=took.cpu_seconds,
        alone_seconds=(before.seconds + after.seconds) / 2,
        alone_cpu_seconds=(before.cpu_seconds + after.cpu_seconds) / 2,
        helper_cpu_seconds=helper.cpu_seconds,
    )


def _one(step: Step, case: MonitorCase, watch: Watch) -> tuple[Took, Helper]:
    helper, device = Helper(), case.step.device
    with watching(step, watch, device, case.interval_seconds, helper) as taken:

        def work() -> None:
            _several(taken, case.steps)

        took = timed(work, device)
    return took, helper


def _several(taken: Step | Watched, steps: int) -> None:
    for _ in range(steps):
        taken.take()
