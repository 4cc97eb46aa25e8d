"""Starts a fresh process for the case, as time runs are started, and listens to what it says."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench import executor
from bench.records import UserError
from bench.records.monitor_cost import MONITOR_COST, MonitorCase, MonitorCost
from bench.stepping import cases
from bench.stepping.launch import end


def run(folder: Path, case: MonitorCase, told: Callable[[str], None]) -> MonitorCost:
    """Measure a case; its record is in ``folder`` afterwards, in the place of an older one.

    Raises:
        UserError: it could not be measured; the message says why.

    """
    path = folder / case.key / MONITOR_COST
    path.unlink(missing_ok=True)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.overhead.child", str(folder), case.model_dump_json()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=executor.environment_of(cases.spec(case.step)),
            start_new_session=True,
        )
        try:
            assert process.stdout is not None  # piped above
            for line in process.stdout:
                told(line.strip())
            code = process.wait()
        finally:
            end(process)
        if code == 0:
            return MonitorCost.model_validate_json(path.read_text(encoding="utf-8"))
        errors.seek(0)
        lines = errors.read().strip().splitlines()
    reason = lines[-1] if lines else f"the process ended with {code}"
    raise UserError(reason, code if code in (2, 3) else 4)
