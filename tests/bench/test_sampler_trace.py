"""The trace on disk: whole, cut off, or refused by the disk."""

from __future__ import annotations

import errno
import gzip
import os
from types import SimpleNamespace

import pytest

from bench.sampler import notes, trace
from bench.sampler.trace import Row, TraceWriter

SECOND = 10**9


def row(i):
    return Row(i * SECOND, "nvml", "GPU-a", "device_used_bytes", i * 1000)


def test_what_is_written_is_read(tmp_path):
    writer = TraceWriter(tmp_path / "t.gz")
    rows = [
        Row(1, "host", "", "cpu_seconds", 0.1 + 0.2),
        Row(2, "nvml", "MIG-1/2/3", "device_used_bytes", 85_899_345_921),
        Row(3, "rapl", "package-0", "energy_joules", 1e-7),
    ]
    writer.write(rows, 0)
    writer.close()
    assert list(trace.read(tmp_path / "t.gz")) == rows
    with gzip.open(tmp_path / "t.gz", "rt") as file:  # anybody's gzip reads it
        lines = file.read().splitlines()
    assert lines[0] == "t_ns,source,device,metric,value" and len(lines) == 4
    assert lines[2] == "2,nvml,MIG-1/2/3,device_used_bytes,85899345921"


def test_rows_are_on_the_disk_a_quarter_of_a_second_later(tmp_path):
    writer = TraceWriter(tmp_path / "t.gz")
    writer.write([row(1)], SECOND)
    writer.write([row(2)], SECOND + 100_000_000)
    assert list(trace.read(tmp_path / "t.gz")) == [row(1)]
    writer.write([row(3)], SECOND + 250_000_000)
    assert list(trace.read(tmp_path / "t.gz")) == [row(1), row(2), row(3)]
    writer.close()


def test_a_file_cut_off_anywhere_is_read_up_to_its_last_whole_row(tmp_path):
    path = tmp_path / "t.gz"
    writer = TraceWriter(path)
    for i in range(40):
        writer.write([row(i)], i * SECOND)
    writer.close()
    whole, seen = path.read_bytes(), []
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        rows = list(trace.read(path))
        assert rows == [row(i) for i in range(len(rows))]
        seen.append(len(rows))
    assert seen == sorted(seen) and seen[0] == 0 and len(set(seen)) > 30


def test_a_row_cut_in_two_is_no_row(tmp_path):
    path = tmp_path / "t.gz"
    writer = TraceWriter(path)
    rows = [Row(i, "nvml", "GPU-a", "m", float(i * i * 7919 % 1_000_003)) for i in range(30_000)]
    writer.write(rows, SECOND)
    writer.close()
    whole = path.read_bytes()
    assert len(whole) > 2 << 16  # read in pieces
    for size in range(1 << 16, len(whole), 15_013):
        path.write_bytes(whole[:size])
        found = list(trace.read(path))
        assert found == rows[: len(found)] and len(found) > 1000
    path.write_bytes(whole)
    assert list(trace.read(path)) == rows


def test_bytes_that_are_no_trace_are_no_rows(tmp_path):
    assert list(trace.read(tmp_path / "none")) == []
    (tmp_path / "text").write_text("no gzip\n")
    assert list(trace.read(tmp_path / "text")) == []
    with gzip.open(tmp_path / "other", "wt") as file:
        file.write("a,b\n1,2,3,4,five\n1,nvml,G,m,5\n\n")
    assert list(trace.read(tmp_path / "other")) == [Row(1, "nvml", "G", "m", 5.0)]


class FullDisk:
    """os.write of a disk with so much room."""

    def __init__(self, monkeypatch, room):
        self.room, self.write = room, os.write
        monkeypatch.setattr(trace.os, "write", self)

    def __call__(self, file, data):
        if self.room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = self.write(file, data[: self.room])
        self.room -= done
        return done


def test_a_full_disk_costs_no_row_that_came_before_and_what_came_after_waits(
    tmp_path, monkeypatch
):
    path = tmp_path / "t.gz"
    disk = FullDisk(monkeypatch, 400)
    writer = TraceWriter(path)
    for i in range(100):
        writer.write([row(i)], i * SECOND)
    assert "No space left" in writer.problem
    assert path.stat().st_size == writer._good  # nothing of a block that did not fit
    kept = list(trace.read(path))
    assert 5 < len(kept) < 60 and kept == [row(i) for i in range(len(kept))]
    disk.room = 100_000
    writer.write([row(100)], 100 * SECOND)
    writer.close()
    assert list(trace.read(path)) == [row(i) for i in range(101)]
    assert writer.lost == 0 and writer.problem
    with gzip.open(path, "rt") as file:
        assert len(file.readlines()) == 102


def test_what_a_full_disk_never_took_is_counted(tmp_path, monkeypatch):
    FullDisk(monkeypatch, 400)
    writer = TraceWriter(tmp_path / "t.gz")
    for i in range(100):
        writer.write([row(i)], i * SECOND)
    writer.close()
    assert writer.lost == 100 - len(list(trace.read(tmp_path / "t.gz")))


def test_the_last_room_on_a_disk_is_left_to_the_run(tmp_path, monkeypatch):
    path = tmp_path / "t.gz"
    writer = TraceWriter(path)
    writer.write([row(0)], SECOND)
    free = SimpleNamespace(f_bavail=trace._RESERVE // 4096 - 1, f_frsize=4096)
    monkeypatch.setattr(trace.os, "fstatvfs", lambda file: free)
    writer.write([row(1)], 2 * SECOND)
    assert "left to the run" in writer.problem and list(trace.read(path)) == [row(0)]
    free.f_bavail += 1
    writer.close()
    assert list(trace.read(path)) == [row(0), row(1)] and writer.lost == 0


def test_memory_holds_a_bounded_number_of_rows_that_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "_MOST_PENDING", 50)
    FullDisk(monkeypatch, 0)
    writer = TraceWriter(tmp_path / "t.gz")
    for i in range(200):
        writer.write([row(i)], i * SECOND)
        assert len(writer._pending) <= 51
    writer.close()
    assert writer.lost == 200 + 1  # and the line of names


def test_notes_that_a_full_disk_refuses_leave_those_of_before(tmp_path, monkeypatch):
    assert notes.write(tmp_path, {"a": 1}) is None

    def refuse(path, text, **options):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(tmp_path), "write_text", refuse)
    assert "No space left" in notes.write(tmp_path, {"a": 2})
    assert notes.read(tmp_path) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == [notes.NOTES]


@pytest.mark.parametrize("folder", ["missing", "file/inside"])
def test_a_trace_that_can_not_be_opened_is_a_problem_not_an_error(tmp_path, folder):
    (tmp_path / "file").write_text("")
    writer = TraceWriter(tmp_path / folder / "t.gz")
    writer.write([row(1)], SECOND)
    writer.close()
    assert "could not be written" in writer.problem and writer.lost
