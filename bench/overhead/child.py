"""One case, in a process of its own: ``python -m bench.overhead.child FOLDER CASE``.

``CASE`` is JSON; a line of output says what goes on; the record is written into ``FOLDER``.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from pathlib import Path

import psutil
import torch

from bench import environment, failures
from bench.built import build
from bench.cell import now
from bench.overhead import borders, rounds
from bench.overhead.watching import Step, meters
from bench.records.monitor_cost import MonitorCase, MonitorCost, write_monitor_cost
from bench.stepping import cases
from bench.stepping.contenders import Bench


def measure(case: MonitorCase, told: rounds.Told = lambda words: None) -> MonitorCost:
    """Measure one case in this process, with its threads.

    Raises:
        UserError: model, task or method can't be had, or do not go together.

    """
    started = now()
    torch.set_num_threads(case.step.threads)
    told("loading")
    spec = cases.spec(case.step)
    built = build(spec)
    step = Step(Bench.of(spec, built), case.step.methods[0])
    load = [os.getloadavg()[0]]
    seen = rounds.run(step, case, told)
    load.append(os.getloadavg()[0])
    return MonitorCost(
        key=case.key,
        case=case,
        started_at=started,
        wall_seconds=time.time() - psutil.Process().create_time(),
        environment=environment.read(case.step.device),
        load_average=load,
        model=built.facts,
        sampler_cpu_share=statistics.median(seen.shares) if seen.shares else None,
        phases_per_step=borders.phases(step, case.step.device),
        phase_cost_seconds=borders.seconds(case.step.device),
        trackers=sorted(meters("memory", case.step.device)),
        watched=seen.watched(),
    )


def main(folder: Path, text: str) -> int:
    """Measure, write the record, and return the exit code."""

    def work() -> None:
        case = MonitorCase.model_validate_json(text)
        write_monitor_cost(folder, measure(case, lambda told: print(told, flush=True)))

    return failures.exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
