"""Starts a fresh process for each case, and listens to what it says."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bench import executor
from bench.records import UserError
from bench.records.step_speed import STEP_SPEED, StepCase, StepSpeed, read_step_speeds
from bench.stepping import cases

_GRACE_SECONDS = 5.0


def run(
    folder: Path, several: Iterable[StepCase], told: Callable[[StepCase, str], None]
) -> Iterator[tuple[StepCase, StepSpeed | str]]:
    """Measure cases one after the other; yield the record of each, or why there is none.

    The record is in ``folder`` when it is yielded; one of an earlier run of the case is replaced.
    """
    for case in several:
        reason = _run_one(folder, case, told)
        if reason is not None:
            yield case, reason
            continue
        (record,) = read_step_speeds(folder / case.key)
        yield case, record


def _run_one(folder: Path, case: StepCase, told: Callable[[StepCase, str], None]) -> str | None:
    """Return why it failed, or None."""
    (folder / case.key / STEP_SPEED).unlink(missing_ok=True)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.stepping.child", str(folder), case.model_dump_json()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=executor.environment_of(cases.spec(case)),
            start_new_session=True,
        )
        try:
            assert process.stdout is not None  # piped above
            for line in process.stdout:
                told(case, line.strip())
            code = process.wait()
        finally:
            end(process)
        if code == 0:
            return None
        errors.seek(0)
        lines = errors.read().strip().splitlines()
    if code == 2 and lines:  # the same for every case
        raise UserError(lines[-1])
    return lines[-1] if lines else f"the process ended with {code}"


def end(process: subprocess.Popen[str]) -> None:
    """End a process that was started for a measurement, politely first; nothing if it is over."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
