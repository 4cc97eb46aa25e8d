"""One run on disk: what is asked, what happens, what came of it.

A cell is a folder ``<results>/<suite>/<key>/``. ``cell.json`` is written before the run begins;
``events.jsonl`` is appended to, a line at a time, while it goes (so nothing is lost with the
process); ``record.json`` ends it. A folder without a record is a run still going, or killed.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from bench import doubts, trackers
from bench.hours import Course, hours
from bench.phases import windows
from bench.predict.measured import joined
from bench.records import (
    RECORD,
    Declared,
    Environment,
    Evaluation,
    Failure,
    Flag,
    Measurement,
    ModelFacts,
    RunRecord,
    RunSpec,
    Status,
    Steps,
    TaskFacts,
    UserError,
    read_record,
    write_atomically,
    write_record,
)
from bench.sampler import Found, summarise
from bench.sampler.notes import NOTES
from bench.sampler.trace import TRACE
from bench.snapshot import SNAPSHOT

EVENTS = "events.jsonl"
LOG = "log.txt"
TRAJECTORY = "trajectory.bin"
SAVED = "saved.pt"
_CELL = "cell.json"


class Cell(BaseModel):
    """A run of a suite that is to be made."""

    model_config = ConfigDict(frozen=True)

    suite: str
    group_title: str
    spec: RunSpec

    def folder(self, results: Path) -> Path:
        """Return where the run lives."""
        return results / self.suite / self.spec.key


def write_cell(folder: Path, cell: Cell) -> None:
    """Make the folder ready for a run.

    What a try left behind that was killed is kept, for the run to go on from; what one left that
    came to an end of its own is removed. What was sampled is of one process, and always removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove(folder, *_OF_ONE_PROCESS)
    if not _was_killed(folder):
        remove(folder, EVENTS, TRAJECTORY, SAVED)
    (folder / RECORD).unlink(missing_ok=True)
    write_atomically(folder / _CELL, cell.model_dump_json(indent=1) + "\n")


_OF_ONE_PROCESS = (LOG, TRACE, NOTES, SNAPSHOT)


def remove(folder: Path, *names: str) -> None:
    """Remove files of a run, where they are."""
    for name in names:
        (folder / name).unlink(missing_ok=True)


def set_aside(folder: Path) -> Path:
    """Keep a run's record and its files in ``try1``, ``try2`` ..., so that the run begins anew.

    Returns the record, under a name that no report takes for a run's. It is moved last: an
    interrupt before leaves a finished run.
    """
    number = tries(folder) + 1
    kept = folder / f"try{number}"
    kept.mkdir(exist_ok=True)
    for name in (EVENTS, TRAJECTORY, *_OF_ONE_PROCESS):
        if (folder / name).exists():
            (folder / name).replace(kept / name)
    remove(folder, SAVED)
    return (folder / RECORD).replace(kept / f"record.try{number}.json")


def tries(folder: Path) -> int:
    """Return how many records were set aside."""
    return len(list(folder.glob("try*/record.try*.json")))


def _was_killed(folder: Path) -> bool:
    if not (folder / RECORD).exists():
        return True
    try:
        failure = read_record(folder / RECORD).failure
    except UserError:
        return False
    return failure is not None and failure.cause in KILLED


KILLED = ("exit -9", "exit -15")
"""Causes of failure that say nothing about the run itself."""


def read_cell(folder: Path) -> Cell:
    """Read what is to be run."""
    return Cell.model_validate_json((folder / _CELL).read_text(encoding="utf-8"))


class Events:
    """Appends events to a run's file; each is on its way to the disk when the call returns."""

    def __init__(self, folder: Path) -> None:
        """Open the file; a line cut off by the death of its writer is removed first."""
        path = folder / EVENTS
        if path.exists() and not (text := path.read_bytes()).endswith(b"\n"):
            write_atomically(path, text[: text.rfind(b"\n") + 1].decode())
        self._file = (folder / EVENTS).open("a", encoding="utf-8", buffering=1)

    def write(self, event: str, data: BaseModel | dict[str, Any]) -> None:
        """Append one event."""
        body = data.model_dump(mode="json") if isinstance(data, BaseModel) else data
        self._file.write(json.dumps({"event": event, **body}) + "\n")

    def close(self) -> None:
        """Write no more."""
        self._file.close()


def read_events(folder: Path) -> list[dict[str, Any]]:
    """Read the events; a line cut off by the death of its writer is left out."""
    try:
        text = (folder / EVENTS).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.split("\n")[:-1]]


@dataclass(frozen=True)
class Outcome:
    """How a run ended."""

    status: Status
    reason: str
    wall_seconds: float
    failure: Failure | None = None


def tell(events: Events, outcome: Outcome) -> None:
    """Write down how a run ended; the record is made of it by the parent."""
    events.write("outcome", {**vars(outcome), "failure": _plain(outcome.failure)})


def _plain(failure: Failure | None) -> dict[str, Any] | None:
    return None if failure is None else failure.model_dump(mode="json")


def told(folder: Path) -> Outcome | None:
    """Return how the newest process of a run said that it ended, if it came to that."""
    for event in reversed(read_events(folder)):
        if event["event"] == "start":
            break
        if event["event"] == "outcome":
            failure = event["failure"] and Failure.model_validate(event["failure"])
            return Outcome(event["status"], event["reason"], event["wall_seconds"], failure)
    return None


def finish(folder: Path, outcome: Outcome) -> RunRecord:
    """Put the record together from the events, and write it. The same for a run that died.

    Done by the parent: reading a long trace takes a while, and the run's devices are free by then.
    """
    cell = read_cell(folder)
    spec, events = cell.spec, read_events(folder)
    environment = _last(events, "environment", Environment)
    seen = windows(events)
    sampled = summarise(folder, seen, timing=spec.measure == "time")
    measurements = _all(events, "measurement", Measurement)
    measurements += [_measurement(found) for found in sampled.found]
    evaluations = _all(events, "evaluation", Evaluation)
    if environment is not None:
        course = Course.of(spec, environment, outcome.wall_seconds, events, seen)
        measurements += hours(course, evaluations, measurements)
    definitions = trackers.definitions()
    flags = _all(events, "flag", Flag) + doubts.flags(sampled.doubts)
    flags += doubts.of_allocator(spec, outcome.status, measurements)
    record = RunRecord(
        key=spec.key,
        suite=cell.suite,
        group_title=cell.group_title,
        spec=spec,
        status=outcome.status,
        reason=outcome.reason,
        failure=outcome.failure,
        started_at=_started(events),
        wall_seconds=outcome.wall_seconds,
        environment=environment,
        model=_last(events, "model", ModelFacts),
        task=_last(events, "task", TaskFacts),
        declared=_last(events, "declared", Declared),
        steps=_steps(spec, events),
        evaluations=evaluations,
        measurements=measurements,
        definitions={m.metric: definitions[m.metric] for m in measurements},
        flags=doubts.once(flags),
        files={
            p.name.partition(".")[0]: p.name for p in sorted(folder.iterdir()) if p.name in _KEPT
        },
    )
    record = joined(folder, record)
    write_record(folder, record)
    return record


_KEPT = (EVENTS, LOG, TRAJECTORY, TRACE, NOTES, SNAPSHOT)


def _measurement(found: Found) -> Measurement:
    return Measurement(
        metric=found.metric,
        phase=found.phase,
        value=found.value,
        unit=found.unit,
        quality=found.quality,
        source=found.source,
        reason=found.reason,
        device=found.device,
    )


def _steps(spec: RunSpec, events: list[dict[str, Any]]) -> Steps:
    steps = [e for e in events if e["event"] == "step"]
    return Steps(
        losses=[s["loss"] for s in steps],
        seconds=[s["seconds"] for s in steps] if spec.measure == "time" else None,
        queries=[s["queries"] for s in steps],
        backwards=[s["backwards"] for s in steps],
    )


def _body(event: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in event.items() if k != "event"}


def _all(events: list[dict[str, Any]], name: str, kind: type[Any]) -> list[Any]:
    return [kind.model_validate(_body(e)) for e in events if e["event"] == name]


def _last(events: list[dict[str, Any]], name: str, kind: type[Any]) -> Any:
    found = _all(events, name, kind)
    return found[-1] if found else None


def _started(events: list[dict[str, Any]]) -> str:
    for event in events:
        if event["event"] == "start":
            return str(event["at"])
    return now()


def start_event() -> dict[str, Any]:
    """Return what a process says first: the time, in UTC and on the monotonic clock."""
    return {"at": now(), "t_ns": time.monotonic_ns()}


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def log_tail(folder: Path, lines: int = 20) -> str:
    """Return the last lines of a run's log."""
    try:
        text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
