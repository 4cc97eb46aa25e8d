"""One run on disk: what is asked, what happens, what came of it.

A cell is a folder ``<results>/<suite>/<key>/``. ``cell.json`` is written before the run begins;
``events.jsonl`` is appended to, a line at a time, while it goes (so nothing is lost with the
process); ``record.json`` ends it. A folder without a record is a run still going, or killed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from bench import trackers
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
    came to an end of its own is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not _was_killed(folder):
        for name in (EVENTS, LOG, TRAJECTORY, SAVED):
            (folder / name).unlink(missing_ok=True)
    (folder / RECORD).unlink(missing_ok=True)
    write_atomically(folder / _CELL, cell.model_dump_json(indent=1) + "\n")


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


def finish(folder: Path, outcome: Outcome) -> RunRecord:
    """Put the record together from the events, and write it. The same for a run that died."""
    cell = read_cell(folder)
    events = read_events(folder)
    steps = [e for e in events if e["event"] == "step"]
    measurements = _all(events, "measurement", Measurement)
    definitions = trackers.definitions()
    record = RunRecord(
        key=cell.spec.key,
        suite=cell.suite,
        group_title=cell.group_title,
        spec=cell.spec,
        status=outcome.status,
        reason=outcome.reason,
        failure=outcome.failure,
        started_at=_started(events),
        wall_seconds=outcome.wall_seconds,
        environment=_last(events, "environment", Environment),
        model=_last(events, "model", ModelFacts),
        task=_last(events, "task", TaskFacts),
        declared=_last(events, "declared", Declared),
        steps=Steps(
            losses=[s["loss"] for s in steps],
            seconds=[s["seconds"] for s in steps] if cell.spec.measure == "time" else None,
            queries=[s["queries"] for s in steps],
            backwards=[s["backwards"] for s in steps],
        ),
        evaluations=_all(events, "evaluation", Evaluation),
        measurements=measurements,
        definitions={m.metric: definitions[m.metric] for m in measurements},
        flags=_all(events, "flag", Flag),
        files={p.stem: p.name for p in sorted(folder.iterdir()) if p.name in _KEPT},
    )
    write_record(folder, record)
    return record


_KEPT = (EVENTS, LOG, TRAJECTORY)


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
