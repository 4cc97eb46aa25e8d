"""From events and trace to a record: windows of phases, flags, files of earlier tries."""

from __future__ import annotations

import json

import pytest

from bench import cell as cells
from bench import doubts, executor, store
from bench.cell import EVENTS, Outcome, finish, set_aside, tries, write_cell
from bench.devices.answer import Doubt
from bench.phases import windows
from bench.records import Environment, Failure, Flag, Measurement, RunSpec, read_record
from bench.sampler import Found, Sampled, Window

S = 10**9  # a second, in nanoseconds
ENVIRONMENT = Environment(
    zometer="1", commit=None, dirty=None, python="3", packages={}, platform="Linux", cpu="EPYC",
    cpu_cores=2, threads=2, memory_total_bytes=1, devices=["H100"], noise_kernel="k", variables={},
)  # fmt: skip


def phases(*told):
    return [{"event": "phase", "name": n, "depth": d, "t_ns": t} for n, d, t in told]


def start(t_ns):
    return {"event": "start", "at": "2026-01-01T00:00:00+00:00", "t_ns": t_ns}


def test_windows_are_every_stretch_that_a_phase_was_open():
    told = phases(
        ("run", 0, 1), ("train", 1, 2), ("forward", 2, 3), ("train", 1, 5), ("update", 2, 6),
        ("train", 1, 7), ("run", 0, 8), ("train", 1, 9), ("run", 0, 10), ("end", -1, 11),
    )  # fmt: skip
    assert windows([start(0), *told]) == [
        Window("forward", 3, 5, 2),
        Window("update", 6, 7, 2),
        Window("train", 2, 8, 1),
        Window("train", 9, 10, 1),
        Window("run", 1, 11, 0),
    ]


def test_windows_of_a_run_that_died_end_with_its_last_event():
    told = phases(("run", 0, 1), ("train", 1, 2), ("forward", 2, 3))
    died = [start(0), *told, {"event": "step", "t_ns": 40}, {"event": "flag"}]
    assert windows(died) == [
        Window("forward", 3, 40, 2),
        Window("train", 2, 40, 1),
        Window("run", 1, 40, 0),
    ]


def test_windows_are_those_of_the_newest_process():
    old = [start(0), *phases(("run", 0, 1), ("train", 1, 2))]
    new = [start(100), *phases(("run", 0, 101), ("end", -1, 105))]
    assert windows(old + new) == [Window("run", 101, 105, 0)]


def test_events_of_before_phases_had_times_have_no_windows():
    assert windows([{"event": "start"}, {"event": "phase", "name": "run"}]) == []
    assert windows([]) == []


def found(**changes) -> Found:
    fields = {"metric": "device_used_peak_bytes", "phase": "run", "value": 7, "unit": "B",
              "quality": "sampled", "source": "nvml", "device": "GPU-a"}  # fmt: skip
    return Found(**{**fields, **changes})


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Return a function that makes the record of a run with this trace."""

    def make(sampled=None, measured=(), status="completed", **spec):
        fields = {"method": "mezo", "model": "m", "task": "t", "steps": 1, "device": "cuda"}
        cell = cells.Cell(suite="s", group_title="g", spec=RunSpec(**{**fields, **spec}))
        folder = cell.folder(tmp_path)
        write_cell(folder, cell)
        events = [
            start(0),
            {"event": "environment", **ENVIRONMENT.model_dump()},
            *phases(("run", 0, S), ("load", 1, 2 * S), ("run", 0, 4 * S), ("end", -1, 9 * S)),
            *({"event": "measurement", **m.model_dump()} for m in measured),
        ]
        (folder / EVENTS).write_text("".join(json.dumps(e) + "\n" for e in events))
        asked = []

        def summarise(where, seen, *, timing):
            asked.append((where, list(seen), timing))
            return sampled or Sampled()

        monkeypatch.setattr(cells, "summarise", summarise)
        record = finish(folder, Outcome(status, "done", 3.0))
        seen = [Window("load", 2 * S, 4 * S, 1), Window("run", S, 9 * S, 0)]
        assert asked == [(folder, seen, cell.spec.measure == "time")]
        assert read_record(folder / "record.json") == record
        return record

    return make


def test_what_was_sampled_is_in_the_record_with_its_device_or_its_reason(finished):
    missing = found(metric="energy_joules", value=None, unit="J", quality="unavailable",
                    reason="MIG", source="none")  # fmt: skip
    record = finished(Sampled([found(), found(device="GPU-b", value=9), missing]))
    told = [(m.metric, m.device, m.value) for m in record.measurements if "hours" not in m.metric]
    assert told == [
        ("device_used_peak_bytes", "GPU-a", 7),
        ("device_used_peak_bytes", "GPU-b", 9),
        ("energy_joules", "GPU-a", None),
    ]
    assert record.definitions["energy_joules"].unit == "J"
    assert [m.reason for m in record.measurements if m.metric == "energy_joules"] == ["MIG"]


def test_the_busy_share_of_the_trace_becomes_busy_hours(finished):
    shares = found(metric="gpu_busy_share", value=0.5, unit="1")
    record = finished(Sampled([shares]))
    assert record.value("gpu_hours_busy", "run") == pytest.approx(0.5 * 8 / 3600)
    assert record.value("gpu_hours_reserved", "run") == pytest.approx(3 / 3600)


def test_doubts_of_the_sampler_are_flags_of_the_record_once_each(finished):
    doubt = Doubt("other_process", "invalid", "pid 7 used 1 GiB")
    record = finished(Sampled(doubts=[doubt, doubt, Doubt("throttled", "suspect", "hot")]))
    assert record.flags == [
        Flag(name="other_process", severity="invalid", text="pid 7 used 1 GiB"),
        Flag(name="throttled", severity="suspect", text="hot"),
    ]
    assert store.invalid(record) and not store.invalid(finished())


def count(metric: str, value: int) -> Measurement:
    return Measurement(
        metric=metric, phase="run", value=value, unit="1", quality="exact", source="x"
    )


@pytest.mark.parametrize(
    ("retries", "ooms", "status", "measure", "flagged"),
    [
        (0, 0, "completed", "memory", False),
        (2, 0, "completed", "memory", True),
        (1, 1, "completed", "memory", True),  # somebody caught it and went on
        (1, 1, "out_of_memory", "memory", False),  # the refusal that ended it is its result
        (3, 1, "out_of_memory", "memory", False),  # near the wall it tries
        (2, 0, "completed", "time", False),
    ],
)
def test_a_memory_run_that_was_refused_memory_and_went_on_is_invalid(
    finished, retries, ooms, status, measure, flagged
):
    measured = [count("device_alloc_retries", retries), count("device_ooms", ooms)]
    record = finished(measured=measured, status=status, measure=measure)
    assert [(f.name, f.severity) for f in record.flags] == [("oom_retry", "invalid")] * flagged


def test_files_of_one_process_are_begun_anew_and_those_to_resume_from_are_kept(
    tmp_path, tiny_cell
):
    folder, cell = tmp_path / "run", tiny_cell()
    write_cell(folder, cell)
    names = ("trace.csv.gz", "sampler.json", "snapshot.pickle", "log.txt")
    kept = ("events.jsonl", "trajectory.bin", "saved.pt")
    for name in (*names, *kept):
        (folder / name).write_text("")
    write_cell(folder, cell)  # no record: it was killed
    assert [n for n in names if (folder / n).exists()] == []
    assert all((folder / n).exists() for n in kept)


def test_a_record_set_aside_is_kept_and_the_run_begins_anew(finished, tmp_path):
    record = finished(Sampled(doubts=[Doubt("gpu_lost", "invalid", "gone")]))
    cell = cells.Cell(suite="s", group_title="g", spec=record.spec)
    folder = cell.folder(tmp_path)
    (folder / "trajectory.bin").write_bytes(b"x")
    assert tries(folder) == 0
    kept = set_aside(folder)
    assert kept.name == "record.try1.json" and read_record(kept) == record
    assert {p.name for p in folder.iterdir()} == {"try1", "cell.json"}
    assert (folder / "try1" / "trajectory.bin").read_bytes() == b"x"
    assert tries(folder) == 1


def test_an_invalid_run_is_queued_again_until_it_was_tried_often_enough(finished, tmp_path):
    cell = None
    for n in range(3):
        record = finished(Sampled(doubts=[Doubt("gpu_lost", "invalid", f"gone {n}")]))
        cell = cells.Cell(suite="s", group_title="g", spec=record.spec)
        known = {record.key: record}
        again = store.queue_again(tmp_path, [cell], known, 2)
        assert again == ([cell] if n < 2 else []) and bool(known) == (n == 2)
    assert tries(cell.folder(tmp_path)) == 2
    last = read_record(cell.folder(tmp_path) / "record.json")
    assert last.flags[0].text == "gone 2"


def test_a_run_that_is_only_suspect_or_was_not_made_is_not_queued_again(finished, tmp_path):
    record = finished(Sampled(doubts=[Doubt("throttled", "suspect", "hot")]))
    cell = cells.Cell(suite="s", group_title="g", spec=record.spec)
    assert store.queue_again(tmp_path, [cell], {record.key: record}, 5) == []
    assert store.queue_again(tmp_path, [cell], {}, 5) == []


def test_flags_that_say_the_same_are_one():
    one, other = (Flag(name="a", severity="info", text=t) for t in "xy")
    assert doubts.once([one, other, one]) == [one, other]


def test_how_a_run_ended_is_what_its_newest_process_said(tmp_path, tiny_cell):
    folder = tmp_path / "run"
    write_cell(folder, tiny_cell())
    assert cells.told(folder) is None
    events = cells.Events(folder)
    failure = Failure(cause="NonFiniteLoss", phase="forward", step=3, bytes_requested=7)
    ended = Outcome("failed", "it diverged", 2.5, failure)
    events.write("start", {"at": "now"})
    cells.tell(events, ended)
    assert cells.told(folder) == ended
    events.write("start", {"at": "later"})  # resumed, and still going
    assert cells.told(folder) is None
    cells.tell(events, Outcome("completed", "all steps were taken", 3.0))
    assert cells.told(folder) == Outcome("completed", "all steps were taken", 3.0)
    events.close()


def test_a_run_whose_parent_died_before_the_record_is_not_made_again(tmp_path, tiny_cell):
    cell = tiny_cell()
    folder = cell.folder(tmp_path)
    write_cell(folder, cell)
    events = cells.Events(folder)
    events.write("start", {"at": "2026-01-01T00:00:00+00:00"})
    cells.tell(events, Outcome("completed", "all steps were taken", 3.0))
    events.close()
    (record,) = executor.run(tmp_path, [cell], lambda *_: pytest.fail("it was started"))
    assert (record.status, record.wall_seconds) == ("completed", 3.0)
    assert read_record(folder / "record.json") == record
