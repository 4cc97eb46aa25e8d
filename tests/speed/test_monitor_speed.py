"""A step and what watches it, under pytest-benchmark: ``pytest tests/speed --benchmark-only``.

Nothing timed is asserted. The ratio that can be trusted on a busy machine is that of ``zometer
bench monitor``, which takes what it compares in turns.
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.built import build
from bench.overhead.watching import Helper, Step, watching
from bench.records.monitor_cost import Watch
from bench.records.step_speed import StepCase
from bench.stepping import cases
from bench.stepping.contenders import Bench

pytest.importorskip("pytest_benchmark")


@pytest.mark.parametrize("watch", ["nothing", "time", "memory"])
def test_step_watched_by(benchmark: Any, watch: Watch):
    case = StepCase(
        model="opt-tiny", dtype="float32", batch_size=2, seq_len=16, methods=["mezo"], threads=1
    )
    spec = cases.spec(case)
    step = Step(Bench.of(spec, build(spec)), "mezo")
    before = step.take()
    with watching(step, watch, "cpu", 0.05, Helper()) as taken:
        benchmark.pedantic(taken.take, rounds=2 if watch == "memory" else 5, warmup_rounds=1)
    assert step.take() != before
