"""Runs cells one after the other, each in a fresh process with a time limit.

The parent sleeps between looks at the run's events; it takes no core from what it measures.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from bench import failures, snapshot, store
from bench.cell import (
    EVENTS,
    LOG,
    Cell,
    Outcome,
    finish,
    log_tail,
    read_events,
    told,
    write_cell,
)
from bench.preload import heap_counter
from bench.records import RECORD, Failure, RunRecord, RunSpec, Status, UserError

Progress = Callable[[Cell, str, int], None]
"""Told the cell, the phase it is in, and the steps it has taken."""

_LOOK_SECONDS = 0.25
_GRACE_SECONDS = 5.0
_ROOT = Path(__file__).resolve().parent.parent


def environment_of(spec: RunSpec) -> dict[str, str]:
    """Return the environment variables of a run's process.

    A memory run gives large blocks back to the system as soon as they are freed, so that the
    resident set is what is alive, and on the CPU its heap is counted; a time run keeps the
    allocator's own habits.
    """
    variables = _child_environment()
    variables.setdefault("TOKENIZERS_PARALLELISM", "false")
    if spec.measure == "memory":
        variables["MALLOC_ARENA_MAX"] = "1"
        variables["MALLOC_MMAP_THRESHOLD_"] = variables["MALLOC_TRIM_THRESHOLD_"] = str(1 << 16)
        if spec.device == "cpu":
            variables = heap_counter.preloaded(variables)
    return variables


def prepare(kind: str, name: str) -> None:
    """Do what is slow and done once for a model or a task, outside any measured run.

    Raises:
        UserError: it can't be had; the message says why.

    """
    done = subprocess.run(
        [sys.executable, "-m", "bench.prepare", kind, name],
        env=_child_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"can't prepare {kind} '{name}'"]
        raise UserError(lines[-1], done.returncode)


def _child_environment() -> dict[str, str]:
    # A child runs the code that is running now, whatever else is installed under its name.
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in paths if p),
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def run(
    results: Path, cells: Iterable[Cell], progress: Progress, memory_snapshot: bool = False
) -> Iterable[RunRecord]:
    """Run ``cells`` in order and yield the record of each as it ends.

    With ``memory_snapshot`` the allocator's snapshot of runs on CUDA lies beside their records.
    On an interrupt the running cell is ended without a record, so that it is run again.
    """
    prepared: dict[tuple[str, str], str | None] = {}
    for cell in cells:
        store.check_space(results)
        folder = cell.folder(results)
        if not (folder / RECORD).exists() and (ended := told(folder)):
            yield finish(folder, ended)  # its parent died before it wrote the record
            continue
        write_cell(folder, cell)
        reason = _prepared(cell, prepared, progress)
        if reason is not None:
            yield finish(
                folder, Outcome("failed", reason, 0.0, Failure(cause="UserError", phase="load"))
            )
            continue
        yield _run_one(folder, cell, progress, memory_snapshot)


def _prepared(
    cell: Cell, known: dict[tuple[str, str], str | None], progress: Progress
) -> str | None:
    """Prepare what the cell needs; return why not, or None."""
    for need in (("model", cell.spec.model), ("task", cell.spec.task)):
        if need not in known:
            progress(cell, f"prepare {need[1]}", 0)
            try:
                prepare(*need)
                known[need] = None
            except UserError as error:
                known[need] = str(error)
        if known[need] is not None:
            return known[need]
    return None


def _run_one(folder: Path, cell: Cell, progress: Progress, memory_snapshot: bool) -> RunRecord:
    asked = {snapshot.VARIABLE: "1"} if memory_snapshot else {}
    start, kills = time.perf_counter(), failures.out_of_memory_kills()
    with (folder / LOG).open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-u", "-m", "bench.worker", str(folder), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment_of(cell.spec) | asked,
            start_new_session=True,
        )
        try:
            timed_out = _wait(process, folder, cell, progress)
        finally:
            _end(process)
    seconds = time.perf_counter() - start
    if ended := told(folder):
        return finish(folder, ended)
    if timed_out:
        limit = cell.spec.time_limit_seconds
        return _salvage(folder, "timed_out", f"not done after {limit:g} s", "TimeLimit", seconds)
    killed = kills is not None and kills != failures.out_of_memory_kills()
    status, reason = failures.of_exit(process.returncode, killed)
    return _salvage(folder, status, reason, f"exit {process.returncode}", seconds)


def _salvage(folder: Path, status: Status, reason: str, cause: str, seconds: float) -> RunRecord:
    """Write the record of a run that died: what it had done is in its events."""
    events = read_events(folder)
    phases = [e["name"] for e in events if e["event"] == "phase" and e.get("depth", 0) >= 0]
    failure = Failure(
        cause=cause,
        phase=phases[-1] if phases else None,
        step=sum(e["event"] == "step" for e in events),
        log_tail=log_tail(folder),
    )
    return finish(folder, Outcome(status, reason, seconds, failure))


def _wait(process: subprocess.Popen[bytes], folder: Path, cell: Cell, progress: Progress) -> bool:
    """Wait for the end; return whether the time limit came first."""
    deadline = time.monotonic() + cell.spec.time_limit_seconds
    tail = _Tail(folder)
    while time.monotonic() < deadline:
        try:
            process.wait(timeout=_LOOK_SECONDS)
            return False
        except subprocess.TimeoutExpired:
            tail.look()
            progress(cell, tail.phase, tail.steps)
    return True


class _Tail:
    """Follows a run's events without reading them twice."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS
        self._begin(0)
        self.phase = "start"

    def _begin(self, file: int) -> None:
        self._file, self._read, self.steps = file, 0, 0

    def look(self) -> None:
        try:
            with self._path.open("rb") as file:
                if (inode := os.fstat(file.fileno()).st_ino) != self._file:
                    self._begin(inode)  # a resumed run replaces it
                file.seek(self._read)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for event in map(json.loads, whole.splitlines()):
            self.steps += event["event"] == "step"
            self.phase = event["name"] if event["event"] == "phase" else self.phase


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the run's whole process group, politely first. Nothing to do for one that is over."""
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
