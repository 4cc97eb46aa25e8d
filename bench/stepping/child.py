"""One case, in a process of its own: ``python -m bench.stepping.child FOLDER CASE``.

``CASE`` is JSON; a line of output says what goes on; the record is written into ``FOLDER``.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil
import torch

from bench import environment, failures
from bench.built import build
from bench.cell import now
from bench.records.step_speed import PassSpeed, StepCase, StepSpeed, StepTimes, write_step_speed
from bench.stepping import cases, contenders, passes, peak, rounds
from bench.stepping.rounds import Taken, Told
from zo_core import directions


def measure(case: StepCase, told: Told = lambda words: None) -> StepSpeed:
    """Measure one case in this process, with its threads.

    Raises:
        UserError: model, task or methods can't be had, or do not go together.

    """
    started = now()
    torch.set_num_threads(case.threads)
    told("loading")
    spec = cases.spec(case)
    built = build(spec)
    bench = contenders.Bench.of(spec, built)
    taken = rounds.warm(bench, contenders.of(bench, case), told)
    load = [os.getloadavg()[0]]
    rounds.run(bench, taken, case.rounds, case.textbook_rounds, told)
    load.append(os.getloadavg()[0])
    forward_peak = peak.peak_bytes(bench.forward, case.device).peak_bytes if case.peaks else None
    steps = [_times(one, case, told) for one in taken]
    return StepSpeed(
        key=case.key,
        case=case,
        started_at=started,
        wall_seconds=time.time() - psutil.Process().create_time(),
        environment=environment.read(case.device),
        load_average=load,
        model=built.facts,
        weights_bytes=built.params.bytes,
        steps=steps,
        passes=_passes(case, steps, told),
        forward_peak_bytes=forward_peak,
    )


def _times(one: Taken, case: StepCase, told: Told) -> StepTimes:
    step = one.contender
    counted = None
    if case.peaks and one.reason is None:
        told(f"bytes: {step.token}")
        counted = peak.peak_bytes(step.take, case.device)
    return StepTimes(
        token=step.token,
        method=step.name,
        options=step.options,
        distribution=step.distribution,
        steps=step.steps,
        forwards=one.forwards,
        declared=step.declared,
        samples=one.samples,
        idle_updates=step.idle_updates,
        peak=counted,
        reason=one.reason,
    )


def _passes(case: StepCase, steps: list[StepTimes], told: Told) -> list[PassSpeed]:
    if not case.noise:
        return []
    told("noise by itself")
    used = dict.fromkeys(s.distribution for s in steps)
    names = [name for name in used if name in directions.names()]
    return passes.measure(filter(None, names), case.dtype, case.device)


def main(folder: Path, text: str) -> int:
    """Measure, write the record, and return the exit code."""

    def work() -> None:
        case = StepCase.model_validate_json(text)
        write_step_speed(folder, measure(case, lambda told: print(told, flush=True)))

    return failures.exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
