"""Traces beside records: read as far as they go, and never in the way of a report."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from reports import trace

HEADER = b"t_ns,source,device,metric,value\n"


def values(folder: Path) -> list[float]:
    seen = trace.read(folder)
    return [] if seen is None else seen.rows["value"].tolist()


@pytest.mark.parametrize("cut", [0, 1, 9, 40, 300, 1000])
def test_a_truncated_trace_is_read_up_to_its_end(tmp_path: Path, kit: Any, cut: int) -> None:
    rows = [(i / 10, "host", "", "rss_bytes", float(i * 1000)) for i in range(400)]
    kit.write_trace(tmp_path, rows, kit.phases_of_steps(2), cut=cut)
    size = (tmp_path / "trace.csv.gz").stat().st_size
    found = values(tmp_path)
    assert found == [row[4] for row in rows[: len(found)]]
    # Of a file flushed every 500 bytes no more than what was cut off and one flush are lost.
    assert len(found) >= 400 * (size / (size + cut)) - 30
    assert (len(found) == 400) == (cut < 10)  # the last bytes are gzip's own sum


def test_every_length_of_a_killed_trace_gives_the_rows_before(tmp_path: Path, kit: Any) -> None:
    rows = [(i / 10, "host", "", "rss_bytes", float(i)) for i in range(60)]
    kit.write_trace(tmp_path, rows, [])
    whole = (tmp_path / "trace.csv.gz").read_bytes()
    counts = []
    for length in [*range(0, len(whole) - 30, 37), *range(len(whole) - 30, len(whole))]:
        (tmp_path / "trace.csv.gz").write_bytes(whole[:length])
        found = values(tmp_path)
        assert found == [row[4] for row in rows[: len(found)]]
        counts.append(len(found))
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 60)


def test_what_is_no_row_is_passed_over(tmp_path: Path) -> None:
    lines = HEADER + b"10,host,,rss_bytes,1.0\nnonsense\n" + HEADER
    lines += b"20,host,,rss_bytes,n/a\n30,host,,rss_bytes,3\n40,host,,rss_bytes,1,2,3\n50,host,"
    (tmp_path / "trace.csv.gz").write_bytes(gzip.compress(lines))
    assert values(tmp_path) == [1.0, 3.0]


def test_a_trace_in_two_members_is_one(tmp_path: Path) -> None:
    two = [HEADER + b"10,host,,rss_bytes,1\n", b"20,host,,rss_bytes,2\n"]
    packed = b"".join(gzip.compress(text) for text in two)
    (tmp_path / "trace.csv.gz").write_bytes(packed + b"\x1f\x8bdamaged")
    assert values(tmp_path) == [1.0, 2.0]


@pytest.mark.parametrize(
    "content",
    [None, b"", b"no gzip at all", gzip.compress(HEADER)],
    ids=["no file", "empty", "no gzip", "a header"],
)
def test_a_trace_without_a_row_is_none(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "trace.csv.gz").write_bytes(content)
    assert trace.read(tmp_path) is None


def test_seconds_count_from_the_start_event_and_phases_end_with_the_next(
    tmp_path: Path, kit: Any
) -> None:
    rows = [(t, "host", "", "rss_bytes", 1.0) for t in (-1.0, 0.0, 2.5)]
    phases = [
        (0.5, "run", 0),
        (1.0, "load", 1),
        (2.0, "run", 0),
        (2.0, "train", 1),
        (2.25, "forward", 2),
        (2.5, "train", 1),
        (3.0, "run", 0),
        (3.5, "end", -1),
    ]
    kit.write_trace(tmp_path, rows, [kit.phase(*one) for one in phases])  # fmt: skip
    seen = trace.read(tmp_path)
    assert seen is not None
    assert seen.rows["seconds"].tolist() == [0.0, 2.5]  # what came before is of no run
    told = [(s.name, s.depth, s.begin, s.end) for s in seen.stretches]
    assert told == [("load", 1, 1.0, 2.0), ("forward", 2, 2.25, 2.5), ("train", 1, 2.0, 3.0)]
    assert seen.end == 3.5


def test_a_phase_that_never_ended_lasts_as_long_as_the_readings(tmp_path: Path, kit: Any) -> None:
    rows = [(t, "host", "", "rss_bytes", 1.0) for t in (0.0, 4.0)]
    kit.write_trace(tmp_path, rows, [kit.phase(0.5, "run", 0), kit.phase(1.0, "load", 1)])
    seen = trace.read(tmp_path)
    assert seen is not None
    assert [(s.name, s.begin, s.end) for s in seen.stretches] == [("load", 1.0, 4.0)]


def test_of_a_resumed_run_the_last_process_is_shown(tmp_path: Path, kit: Any) -> None:
    rows = [(t, "host", "", "rss_bytes", t) for t in (101.0, 102.0)]
    again = {"event": "start", "t_ns": kit.START_NS + 100 * 10**9}
    phases = [kit.phase(1.0, "load", 1), again, kit.phase(101.5, "resume", 1)]
    kit.write_trace(tmp_path, rows, phases)
    seen = trace.read(tmp_path)
    assert seen is not None
    assert seen.rows["seconds"].tolist() == [1.0, 2.0]
    assert [s.name for s in seen.stretches] == ["resume"]


def test_events_of_older_runs_have_no_times_and_do_no_harm(tmp_path: Path, kit: Any) -> None:
    kit.write_trace(tmp_path, [(0.0, "host", "", "rss_bytes", 7.0)], [])
    old = [{"event": "start", "at": "x"}, {"event": "phase", "name": "load"},
           {"event": "phase", "name": "load", "depth": 1, "t_ns": None}]  # fmt: skip
    (tmp_path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in old))
    seen = trace.read(tmp_path)
    assert seen is not None
    assert (seen.rows["seconds"].tolist(), seen.stretches) == ([0.0], ())
