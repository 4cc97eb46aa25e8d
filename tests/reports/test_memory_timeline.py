"""Memory along the run: what is drawn of a trace, and of which runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.records import Flag
from reports import timeline
from reports.load import Tables, load
from reports.main import build
from reports.plots import memory_timeline, memory_timeline_others
from reports.svg import drawing
from reports.theme import Theme

MIB, GIB = 2**20, 2**30


def traced(folder: Path, kit: Any, records: list[Any], **changes: Any) -> Tables:
    """Return the tables of runs that all left a trace."""
    kit.write(folder, records)
    places = sorted(path.parent for path in folder.rglob("record.json"))
    for place in places:
        given = {"rows": kit.resident(20, lambda t: GIB + t * MIB),
                 "phases": kit.phases_of_steps(8)}  # fmt: skip
        kit.write_trace(place, **{**given, **changes})
    return load(records, folders=places)


def lines(frame: pd.DataFrame, kind: str) -> pd.DataFrame:
    return frame[frame["kind"] == kind]


@pytest.fixture
def one(tmp_path: Path, make_record: Any, kit: Any) -> Any:
    def frame(status: str = "completed", rows: Any = None, **changes: Any) -> pd.DataFrame:
        record = make_record("mezo", status=status, **changes)
        given = {} if rows is None else {"rows": rows}
        return memory_timeline.data(traced(tmp_path, kit, [record], **given))

    return frame


def test_a_spike_of_one_reading_stays_among_a_hundred_thousand(one: Any, kit: Any) -> None:
    rows = kit.resident(20, lambda t: GIB, every=0.0002)
    rows[77_777] = (*rows[77_777][:4], 3.5 * GIB)
    rows[33_333] = (*rows[33_333][:4], 0.5 * GIB)
    drawn = lines(one(rows=rows), "line")
    assert (drawn["bytes"].max(), drawn["bytes"].min()) == (3.5 * GIB, 0.5 * GIB)
    highest = drawn.loc[drawn["bytes"].idxmax()]
    assert highest["begin_seconds"] == pytest.approx(rows[77_777][0], abs=1e-4)
    assert 100 < len(drawn) < 1000
    assert drawn["begin_seconds"].is_monotonic_increasing


def test_phases_are_shaded_and_those_of_steps_shown_where_long_enough(one: Any, kit: Any) -> None:
    frame = one()
    shaded = lines(frame, "phase")
    told = list(zip(shaded["name"], shaded["begin_seconds"], shaded["end_seconds"], strict=True))
    # 8 steps of a second with gaps of 20 ms between them are one stretch of training.
    assert told == [("load", 0.2, 4.0), ("evaluate", 4.0, 6.0), ("train", 6.0, 13.98),
                    ("evaluate", 14.0, 16.0)]  # fmt: skip
    inner = lines(frame, "inner")
    assert inner["name"].tolist() == ["perturb", "forward", "perturb", "forward", "update"] * 8


def test_phases_too_short_to_be_seen_are_left_out(
    tmp_path: Path, make_record: Any, kit: Any
) -> None:
    tables = traced(tmp_path, kit, [make_record("mezo")], phases=kit.phases_of_steps(900))
    frame = memory_timeline.data(tables)
    assert lines(frame, "inner").empty
    assert len(lines(frame, "phase")) == 4


def test_host_and_every_device_have_their_lines(one: Any, kit: Any) -> None:
    rows = kit.resident(10, lambda t: GIB)
    for device, used in (("GPU-a", 3 * GIB), ("GPU-b", 2 * GIB)):
        rows += [(t, "nvml", device, "device_used_bytes", float(used)) for t in (1.0, 9.0)]
        rows += [(t, "nvml", device, "process_used_bytes", used / 2) for t in (1.0, 9.0)]
        rows += [(t, "nvml", device, "power_watts", 300.0) for t in (1.0, 9.0)]
    drawn = lines(one(rows=rows, spec={"device": "cuda"}), "line")
    tops = drawn.groupby(["name", "device"])["bytes"].max().to_dict()
    assert tops == {
        ("resident set (host)", ""): GIB,
        ("used by all (device)", "GPU-a"): 3 * GIB,
        ("used by all (device)", "GPU-b"): 2 * GIB,
        ("this process (device)", "GPU-a"): 1.5 * GIB,
        ("this process (device)", "GPU-b"): GIB,
    }


def test_out_of_memory_is_marked_beside_the_limit(one: Any, kit: Any) -> None:
    failure = kit.Failure(cause="MemoryError", phase="update", bytes_limit=2 * GIB)
    rows = kit.resident(20, lambda t: (1.9 if 13.83 < t < 13.87 else 1.0) * GIB)
    frame = one("out_of_memory", rows, failure=failure, measurements=kit.host(GIB),
                spec={"memory_limit_bytes": 2 * GIB})  # fmt: skip
    (limit,) = lines(frame, "limit").to_dict("records")
    assert limit["bytes"] == 2 * GIB + 400 * MIB  # above the libraries, as it was set
    assert lines(frame, "baseline")["bytes"].tolist() == [400 * MIB]
    (mark,) = lines(frame, "out of memory").to_dict("records")
    assert mark["begin_seconds"] == pytest.approx(13 + 5 / 5.2)  # where the last update ended
    assert mark["bytes"] == 1.9 * GIB  # the highest reading in it, not what was left after


def test_out_of_memory_in_an_unknown_phase_is_marked_at_the_end(one: Any, kit: Any) -> None:
    frame = one("out_of_memory", failure=kit.Failure(cause="SIGKILL"))
    (mark,) = lines(frame, "out of memory").to_dict("records")
    assert (mark["begin_seconds"], mark["bytes"]) == (16.0, GIB + 16.0 * MIB)


def test_a_device_that_was_full_has_its_capacity_as_limit(one: Any, kit: Any) -> None:
    failure = kit.Failure(cause="OutOfMemoryError", bytes_limit=80 * GIB)
    spec = {"device": "cuda"}
    assert lines(one("out_of_memory", failure=failure, spec=spec), "limit")["bytes"].tolist() == [
        80 * GIB
    ]


def test_a_run_that_was_not_refused_has_no_mark(one: Any) -> None:
    frame = one()
    assert lines(frame, "out of memory").empty
    assert lines(frame, "limit").empty


def test_exact_peaks_of_phases_stand_where_the_phases_are(one: Any, kit: Any) -> None:
    numbers = [*kit.host(3 * GIB), kit.number("host_peak_bytes", "load", 2 * GIB),
               kit.number("host_peak_bytes", "train", 3 * GIB)]  # fmt: skip
    peaks = lines(one(measurements=numbers), "peak")
    assert dict(zip(peaks["begin_seconds"], peaks["bytes"], strict=True)) == {
        0.2: 2 * GIB, 6.0: 3 * GIB
    }  # fmt: skip


def test_one_run_stands_for_each_method_and_the_others_are_folded(
    tmp_path: Path, make_record: Any, kit: Any
) -> None:
    bad = Flag(name="other_process", severity="invalid", text="pid 7")
    records = [
        make_record("mezo", spec={"seed": 0}, flags=[bad]),
        make_record("mezo", spec={"seed": 1}),
        make_record("mezo", spec={"seed": 2}, status="out_of_memory", reason="x"),
        make_record("ft_sgd", spec={"seed": 4}, status="failed", reason="x"),
    ]
    tables = traced(tmp_path / "results", kit, records)
    assert [(r.spec.method, r.spec.seed) for r in timeline.representatives(tables)] == [
        ("mezo", 1), ("ft_sgd", 4)
    ]  # fmt: skip
    shown = memory_timeline.data(tables)
    assert list(dict.fromkeys(shown["panel"])) == ["MeZO", "FT-SGD"]
    others = memory_timeline_others.data(tables)
    assert list(dict.fromkeys(others["panel"])) == ["⊘ MeZO, seed 0, time", "MeZO, seed 2, time"]
    page = build(tmp_path / "results", tmp_path / "out").read_text()
    folded = page.split('<details class="card fold wide"><summary>Memory along the run')
    assert len(folded) == 2
    assert "main--memory_timeline_others.svg" in folded[1].split("</details>")[0]
    assert "main--memory_timeline.svg" in folded[0]


def test_the_same_traces_give_the_same_bytes(tmp_path: Path, make_record: Any, kit: Any) -> None:
    records = [make_record(m, spec={"seed": s}) for m in ("mezo", "ft_sgd") for s in (0, 1)]
    traced(tmp_path / "results", kit, records)
    first, second = (build(tmp_path / "results", tmp_path / name).parent for name in "ab")
    files = sorted(path for path in first.rglob("*") if path.is_file())
    assert sum("memory_timeline" in path.name for path in files) == 6
    for path in files:
        assert (second / path.relative_to(first)).read_bytes() == path.read_bytes(), path.name


def test_panels_of_a_model_share_their_height_and_hold_every_line(
    tmp_path: Path, make_record: Any, kit: Any
) -> None:
    tables = traced(tmp_path, kit, [make_record(m) for m in ("mezo", "ft_sgd")])
    data = memory_timeline.data(tables)
    high = data["method"].eq("ft_sgd") & data["kind"].eq("line")
    data.loc[high, "bytes"] = 5 * GIB
    with drawing():
        figure = memory_timeline.draw(data, Theme())
    tops = [panel.get_ylim()[1] for panel in figure.axes]
    assert tops[0] == tops[1] >= 5 * GIB


def test_a_limit_far_away_is_told_and_does_not_flatten_the_lines(one: Any, kit: Any) -> None:
    frame = one(measurements=kit.host(GIB), spec={"memory_limit_bytes": 64 * GIB})
    with drawing():
        (panel,) = memory_timeline.draw(frame, Theme()).axes
    assert panel.get_ylim()[1] < 3 * GIB
    assert any("64.4 GiB" in text.get_text() for text in panel.texts)


def test_runs_without_a_trace_have_no_timeline(make_record: Any, tmp_path: Path) -> None:
    tables = load([make_record("mezo")], folders=[tmp_path])
    assert memory_timeline.data(tables).empty
    assert memory_timeline.data(load([make_record("mezo")])).empty
