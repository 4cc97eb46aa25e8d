"""Rounds: every step in turns, a forward pass between any two, backwards every other round."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench.records.step_speed import TEXTBOOK, StepSample
from bench.stepping.clock import Took, timed
from bench.stepping.contenders import Bench, Contender
from zo_core import NonFiniteLoss
from zo_core.base import Unsupported

Told = Callable[[str], None]
"""Told in a few words what goes on."""


@dataclass
class Taken:
    """What was seen of one contender."""

    contender: Contender
    samples: list[StepSample] = field(default_factory=list)
    forwards: int = 0
    """Forward passes over a minibatch in a sample."""
    reason: str | None = None
    """Why it can't be run."""


def warm(bench: Bench, contenders: Sequence[Contender], told: Told) -> list[Taken]:
    """Take every step once: what is compiled, paged in or allocated on first use is so now.

    Counts the forward passes that each needs. One that can't be run with this model says why, and
    the others go on.
    """
    bench.forward()
    several = []
    for contender in contenders:
        told(f"warm-up: {contender.token}")
        one = Taken(contender)
        bench.seen.examples = 0
        try:
            contender.take()
        except (NonFiniteLoss, Unsupported) as error:
            one.reason = str(error)
        one.forwards = bench.seen.passes(bench.batch)
        several.append(one)
    return several


def run(bench: Bench, several: Sequence[Taken], rounds: int, textbook: int, told: Told) -> None:
    """Take ``rounds`` samples of each, the textbook step in the first ``textbook`` rounds alone.

    A sample stands beside the mean of the forward passes right before and right after it.
    """
    device = bench.spec.device
    gc.collect()
    gc.disable()  # a collection in the middle of a step would be its alone
    try:
        for number in range(rounds):
            told(f"round {number + 1}/{rounds}")
            before = timed(bench.forward, device)
            for one in _order(several, number, textbook):
                took = timed(one.contender.take, device)
                after = timed(bench.forward, device)
                one.samples.append(_sample(number, took, before, after))
                before = after
    finally:
        gc.enable()


def _order(several: Sequence[Taken], number: int, textbook: int) -> list[Taken]:
    here = [
        one
        for one in several
        if one.reason is None and (one.contender.token != TEXTBOOK or number < textbook)
    ]
    return here[::-1] if number % 2 else here


def _sample(number: int, took: Took, before: Took, after: Took) -> StepSample:
    return StepSample(
        round=number,
        seconds=took.seconds,
        cpu_seconds=took.cpu_seconds,
        forward_seconds=(before.seconds + after.seconds) / 2,
        forward_cpu_seconds=(before.cpu_seconds + after.cpu_seconds) / 2,
    )
