"""The trace beside a record: what was in memory when, and which phase was on.

A run that was killed leaves a trace that stops in mid-line and in mid-block of its compression;
both are read as far as they go. What can't be read is as if it were not there: a report is made
of records, and a trace only adds to it.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

TRACE, EVENTS, SAMPLER = "trace.csv.gz", "events.jsonl", "sampler.json"
"""Files beside a record."""
_COLUMNS = ["t_ns", "source", "device", "metric", "value"]
_GZIP = 16 + zlib.MAX_WBITS
_PIECE = 2**20


@dataclass(frozen=True)
class Stretch:
    """A time in which a phase was on, in seconds since the run's start."""

    name: str
    depth: int
    """1: a phase of the harness; above: one of the engine, inside it."""
    begin: float
    end: float


@dataclass(frozen=True)
class Trace:
    """What the sampler saw of one run."""

    rows: pd.DataFrame
    """Columns seconds (since the run's start), source, device, metric, value."""
    stretches: tuple[Stretch, ...]
    """In order of time; those of depth 1 do not overlap, nor do those inside them."""
    end: float
    """Seconds of the last thing known of the run."""


def read(folder: Path) -> Trace | None:
    """Return the trace of the run in ``folder``; None where there is none, or nothing in it."""
    rows = _rows(folder / TRACE)
    if rows.empty:
        return None
    events = _events(folder / EVENTS)
    start = _start(events, rows)
    seconds = (rows["t_ns"] - start) / 1e9
    rows = rows.assign(seconds=seconds)[seconds >= 0].drop(columns="t_ns")
    if rows.empty:
        return None
    phases = [(int(e["t_ns"]) - start, str(e["name"]), int(e["depth"])) for e in events
              if e.get("event") == "phase" and int(e["t_ns"]) >= start]  # fmt: skip
    told = [t / 1e9 for t, _, _ in phases]
    last_row = float(rows["seconds"].max())
    ended = bool(phases) and phases[-1][2] < 0
    # The sampler closes after the run's last border; of a run that died, the rows go further.
    end = told[-1] if ended else max([last_row, *told])
    return Trace(rows.reset_index(drop=True), tuple(_stretches(phases, end)), end)


def sampler_facts(folder: Path) -> dict[str, Any]:
    """Return what the sampler said of itself; empty where it said nothing."""
    try:
        facts = json.loads((folder / SAMPLER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return facts if isinstance(facts, dict) else {}


def unzipped(path: Path) -> bytes:
    """Return what a gzip file holds, as far as it goes; several members count as one file."""
    pieces = []
    member = zlib.decompressobj(_GZIP)
    try:
        with path.open("rb") as file:
            while data := file.read(_PIECE):
                while data:
                    pieces.append(member.decompress(data))
                    data = member.unused_data if member.eof else b""
                    if member.eof:
                        member = zlib.decompressobj(_GZIP)
    except (OSError, zlib.error):
        pass  # no such file, or damaged from here on
    return b"".join(pieces)


def _rows(path: Path) -> pd.DataFrame:
    """Return the whole lines of a trace whose numbers are numbers."""
    text = unzipped(path)
    text = text[: text.rfind(b"\n") + 1]
    if not text:
        return pd.DataFrame(columns=_COLUMNS)
    rows = pd.read_csv(
        io.BytesIO(text), names=_COLUMNS, header=None, dtype=str, keep_default_na=False,
        on_bad_lines="skip", encoding_errors="replace",
    )  # fmt: skip
    numbers = {name: pd.to_numeric(rows[name], errors="coerce") for name in ("t_ns", "value")}
    # A header is no number either, wherever a second process wrote one.
    rows = rows.assign(**numbers).dropna(subset=["t_ns", "value"])
    return rows.astype({"t_ns": "int64", "value": float}).reset_index(drop=True)


def _events(path: Path) -> list[dict[str, Any]]:
    """Return the events that say when; a line cut off by the death of its writer is left out."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    except OSError:
        return []
    return list(_timed(lines))


def _timed(lines: list[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if '"t_ns"' not in line:
            continue  # quick: most events are steps
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("t_ns"), int):
            yield event


def _start(events: list[dict[str, Any]], rows: pd.DataFrame) -> int:
    """Return when the run began: its last process, where an earlier one was killed."""
    starts = [int(e["t_ns"]) for e in events if e.get("event") == "start"]
    if starts:
        return starts[-1]
    return min([int(rows["t_ns"].min()), *(int(e["t_ns"]) for e in events)])


def _stretches(phases: list[tuple[int, str, int]], end: float) -> Iterator[Stretch]:
    """Return how long each phase was on, from events that name the innermost one."""
    outer: tuple[str, float] | None = None
    nexts = [*(t / 1e9 for t, _, _ in phases[1:]), end]
    before = 0
    for (t, name, depth), until in zip(phases, nexts, strict=False):
        begin, returns = t / 1e9, depth == 1 and before > 1  # from a phase inside it
        if depth <= 1 and outer and not returns:
            yield Stretch(outer[0], 1, outer[1], begin)
            outer = None
        if depth == 1 and not returns:
            outer = (name, begin)
        if depth > 1 and until > begin:
            yield Stretch(name, depth, begin, until)
        before = depth
    if outer and end > outer[1]:
        yield Stretch(outer[0], 1, outer[1], end)
