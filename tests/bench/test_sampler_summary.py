"""Numbers and doubts from traces that were written by hand."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pytest

from bench.sampler import Window, notes, summarise
from bench.sampler.series import Borders, Ends, Gaps, Peaks, Spread
from bench.sampler.trace import TRACE, Row, TraceWriter
from bench.sampler.unattributed import Unattributed
from bench.sampler.windows import Stretch, seconds_of, stretches

SECOND = 10**9


def window(name, begin, end, depth=1):
    return Window(name, round(begin * SECOND), round(end * SECOND), 0 if name == "run" else depth)


def write(folder, rows, **said):
    writer = TraceWriter(folder / TRACE)
    writer.write([Row(round(t * SECOND), *rest) for t, *rest in sorted(rows)], SECOND)
    writer.close()
    ended = {"t_ns": 0, "why": "stopped"}
    basis = {"interval_seconds": 0.05, "nvml": False, "cpus": 4, "sampler_pid": None}
    notes.write(folder, {**basis, "ended": ended, "trace": {"problem": None}, **said})


def host(seconds, every=0.05, machine=0.0, own=1.0, begin=0.0):
    """Rows of a host on which others keep ``machine`` cores busy, the run ``own``."""
    rows = []
    for k in range(round(seconds / every) + 1):
        t = begin + k * every
        rows += [(t, "host", "", "rss_bytes", 1000), (t, "host", "", "cpu_seconds", own * t)]
    for k in range(round(seconds) + 1):
        t = begin + k + 0.01
        rows.append((t, "host", "", "machine_busy_seconds", 7 + (own + machine + 0.01) * t))
        rows.append((t, "host", "", "sampler_cpu_seconds", 0.01 * t))
    return rows


def number(sampled, metric, phase="run", device=None):
    return next(
        f for f in sampled.found if (f.metric, f.phase, f.device) == (metric, phase, device)
    )


def doubts(sampled):
    return {d.name: d.text for d in sampled.doubts}


def test_time_is_cut_at_every_border_and_a_phase_inside_itself_counts_once():
    found = stretches([
        window("run", 0, 10), window("train", 2, 8), window("train", 3, 4, 2),
        window("load", 5, 5), window("other", 20, 21),
    ])  # fmt: skip
    run, train = frozenset({"run"}), frozenset({"run", "train"})
    assert found == [
        Stretch(b * SECOND, e * SECOND, phases)
        for b, e, phases in [
            (0, 2, run), (2, 3, train), (3, 4, train), (4, 8, train), (8, 10, run),
            (20, 21, frozenset({"other"})),
        ]
    ]  # fmt: skip
    assert seconds_of(found) == {"run": 10.0, "train": 6.0, "other": 1.0}
    assert stretches([]) == []


def test_a_reading_on_a_border_belongs_to_the_phase_that_begins():
    borders = Borders(stretches([window("a", 0, 1), window("b", 1, 2), window("c", 5, 6)]))
    open_at = {t: set(borders.at(round(t * SECOND))) for t in (-1, 0, 0.5, 1, 2, 3, 5, 6, 7)}
    assert open_at == {
        -1: set(), 0: {"a"}, 0.5: {"a"}, 1: {"b"}, 2: {"b"}, 3: set(), 5: {"c"}, 6: {"c"},
        7: set(),
    }  # fmt: skip


def spread(readings, windows, is_counter, longest=2.0):
    series = Spread(Borders(stretches(windows)), ("a", "b"), longest, is_counter)
    for t, value in readings:
        series.add(round(t * SECOND), value)
    return series


def test_a_counter_is_cut_at_borders_by_straight_lines():
    series = spread(
        [(0, 0), (1, 100), (2, 400)], [window("a", 0.5, 1.5), window("b", 1.5, 9)], True
    )
    assert series.totals["a"].amount == pytest.approx(50 + 150)
    assert (series.totals["b"].amount, series.totals["b"].seconds) == pytest.approx((150, 0.5))


def test_the_area_under_a_rate_is_cut_at_borders_by_straight_lines():
    series = spread([(0, 0), (2, 200)], [window("a", 0, 1), window("b", 1, 2)], False)
    assert series.totals["a"].amount == pytest.approx(50)
    assert series.totals["b"].amount == pytest.approx(150)


def test_over_a_long_pause_a_counter_says_what_passed_in_whole_phases_and_a_rate_nothing():
    readings, windows = [(0, 0), (10, 1000)], [window("a", 0, 10), window("b", 4, 6, 2)]
    series = spread(readings, windows, True)
    assert series.totals["a"].amount == 1000 and series.totals["b"].seconds == 0
    assert spread(readings, windows, False).totals["a"].seconds == 0


def test_a_counter_that_fell_is_told_of_the_phases_it_fell_in():
    series = spread([(0, 5), (1, 6), (2, 1), (3, 2)], [window("a", 0, 1), window("b", 1, 3)], True)
    assert series.fell == {"b": (6, 1)}
    assert series.totals["b"].amount == pytest.approx(1)


def test_gaps_are_those_of_the_window_and_of_its_end():
    gaps = Gaps(0, 1000)
    for t in (-500, -10, 0, 10, 20, 60, 3000):
        gaps.add(t, 0)
    assert gaps.quantiles() == (10e-9, 2940e-9, 2940e-9)
    died = Gaps(0, 1000)
    for t in (0, 10, 20, 30):
        died.add(t, 0)
    assert died.quantiles() == (10e-9, 10e-9, 970e-9)
    assert Gaps(0, 10).quantiles() is None


def test_ends_are_the_readings_around_a_window():
    ends = Ends(100, 200)
    for t, value in [(50, 1), (90, 2), (150, 3), (210, 4), (300, 5)]:
        ends.add(t, value)
    assert (ends.first, ends.before, ends.after) == (1, 2, 4)
    inside = Ends(100, 200)
    inside.add(120, 7)
    inside.add(130, 8)
    assert (inside.first, inside.before, inside.after) == (7, 7, 8)


def test_a_peak_may_be_below_zero_never_missing_as_zero():
    peaks = Peaks(Borders(stretches([window("a", 0, 10)])))
    peaks.add(SECOND, -5)
    peaks.add(20 * SECOND, 7)
    assert peaks.by_phase == {"a": -5}


def test_what_was_freed_between_a_reading_and_the_list_after_it_was_somebodys():
    nobodys = Unattributed(lambda t_ns: True)
    for used, held in [(0, 0), (8000, 8000), (8000, 1000), (1000, 1000)]:
        nobodys.used(0, used)
        nobodys.held(0, held)
        nobodys.others(0, 0)
    assert nobodys.largest == 0
    for used, held in [(6000, 1000), (6000, 1000)]:
        nobodys.used(0, used)
        nobodys.held(0, held)
        nobodys.others(0, 2000)
    assert nobodys.largest == 3000


def test_gaps_of_a_cpu_run_are_the_hosts(tmp_path):
    times = [0.0, 0.05, 0.1, 0.15, 0.2, 0.9, 0.95, 1.0]
    write(tmp_path, [(t, "host", "", "rss_bytes", 1) for t in times])
    said = summarise(tmp_path, [window("run", 0, 1)])
    values = [number(said, f"sampling_gap_{q}_seconds").value for q in ("p50", "p99", "max")]
    assert values == pytest.approx([0.05, 0.7, 0.7])
    assert not [f for f in said.found if f.metric.startswith(("device_", "gpu_", "energy_"))]
    assert said.doubts == []  # no sampled peak is told of the host


def test_joules_of_each_cpu_package_are_cut_at_phases(tmp_path):
    rows = host(20)
    for k in range(201):
        for name, watts in (("package-0", 30), ("package-1", 20)):
            rows.append((k / 10, "rapl", name, "energy_joules", watts * k / 10))
    write(tmp_path, rows)
    said = summarise(tmp_path, [window("run", 1, 19), window("train", 5, 10)])
    energy = number(said, "host_energy_joules", "run", "package-0")
    assert (energy.value, energy.quality, energy.source) == (pytest.approx(540), "sampled", "RAPL")
    assert number(said, "host_energy_joules", "train", "package-1").value == pytest.approx(100)
    assert not [f for f in said.found if f.phase in ("load", "evaluate")]


def test_a_phase_half_of_which_was_not_read_has_no_joules(tmp_path):
    rows = [(k / 10, "rapl", "package-0", "energy_joules", 30 * k / 10) for k in range(51)]
    write(tmp_path, host(5) + rows)
    said = summarise(tmp_path, [window("run", 1, 5.1), window("evaluate", 4.9, 5.1)])
    found = number(said, "host_energy_joules", "evaluate", "package-0")
    assert found.value is None and "known for 0.10 of the 0.20 s" in found.reason
    whole = number(said, "host_energy_joules", "run", "package-0")
    assert whole.value is None  # 2.4 % of it
    said = summarise(tmp_path, [window("run", 0, 5.09)])
    assert number(said, "host_energy_joules", "run", "package-0").value == pytest.approx(150)


def test_a_package_that_stands_still_or_is_missing_is_no_zero(tmp_path):
    still = [(k / 10, "rapl", "package-0", "energy_joules", 0.0) for k in range(51)]
    write(tmp_path, host(5) + still)
    said = summarise(tmp_path, [window("run", 1, 4)])
    found = number(said, "host_energy_joules", "run", "package-0")
    assert found.value is None and "did not move" in found.reason
    write(tmp_path, host(5), rapl={"reason": "root alone", "flag": None})
    found = number(summarise(tmp_path, [window("run", 1, 4)]), "host_energy_joules")
    assert found.value is None and found.reason == "root alone"


@pytest.mark.parametrize(("others", "told"), [(0.3, False), (0.5, True)])
def test_a_busy_host_is_told_of_time_runs_on_cpu_and_gpu(tmp_path, others, told):
    write(tmp_path, host(20, machine=others))
    run = [window("run", 2.5, 17.5)]
    assert ("host_busy" in doubts(summarise(tmp_path, run, timing=True))) == told
    assert doubts(summarise(tmp_path, run)) == {}
    if told:
        text = doubts(summarise(tmp_path, run, timing=True))["host_busy"]
        assert text.startswith("other processes took 12% of the run's 4 CPUs") or "13%" in text
    write(tmp_path, host(20, machine=others), nvml=True)
    assert ("host_busy" in doubts(summarise(tmp_path, run, timing=True))) == told


def test_a_short_run_is_judged_by_its_own_seconds(tmp_path):
    rows = host(10, machine=0.0)
    rows = [(t, s, d, m, v + (20 if m == "machine_busy_seconds" and t > 8 else 0))
            for t, s, d, m, v in rows]  # fmt: skip
    write(tmp_path, rows)
    assert doubts(summarise(tmp_path, [window("run", 2.2, 2.8)], timing=True)) == {}


def test_a_sampler_that_ended_before_the_run_is_told_with_its_reason(tmp_path):
    write(tmp_path, host(5))
    said = summarise(tmp_path, [window("run", 1, 9)])
    assert "ended 4.0 s before the run (stopped)" in doubts(said)["sampler_died"]
    write(tmp_path, host(5), ended=None)
    assert "was killed" in doubts(summarise(tmp_path, [window("run", 1, 9)]))["sampler_died"]
    assert doubts(summarise(tmp_path, [window("run", 1, 5.9)])) == {}


def test_a_trace_that_lost_rows_is_incomplete(tmp_path):
    problem = {"problem": "the trace could not be written: No space left", "lost_rows": 12}
    write(tmp_path, host(5), trace=problem)
    text = doubts(summarise(tmp_path, [window("run", 1, 5)]))
    assert text == {"trace_incomplete": f"{problem['problem']}; 12 rows are lost"}


def test_a_disk_that_was_full_for_a_while_is_no_doubt_and_hides_no_dead_sampler(tmp_path):
    problem = {"problem": "the trace could not be written: No space left", "lost_rows": 0}
    write(tmp_path, host(5), trace={**problem, "opened": True})
    assert doubts(summarise(tmp_path, [window("run", 1, 5)])) == {}
    assert set(doubts(summarise(tmp_path, [window("run", 1, 9)]))) == {"sampler_died"}
    write(tmp_path, host(5), trace={**problem, "lost_rows": 3}, ended=None)
    said = doubts(summarise(tmp_path, [window("run", 1, 9)]))
    assert set(said) == {"trace_incomplete", "sampler_died"}


def test_a_trace_that_was_never_begun_is_told(tmp_path):
    problem = {"problem": "the trace could not be written: denied", "lost_rows": 0}
    write(tmp_path, [], trace={**problem, "opened": False}, ended=None)
    said = doubts(summarise(tmp_path, [window("run", 1, 9)]))
    assert said["trace_incomplete"].startswith(problem["problem"])
    assert said["sampler_died"].startswith("the trace holds no reading")


def refusal(metric, reason, first, last, device="G"):
    return {"source": "nvml", "device": device, "metric": metric, "reason": reason, "flag": None,
            "first_ns": round(first * SECOND), "last_ns": round(last * SECOND),
            "count": 2}  # fmt: skip


def test_a_reason_is_that_of_a_phase_in_which_it_was_said(tmp_path):
    refusals = [
        refusal("process_used_bytes", "no context yet", 0, 2),
        refusal("process_used_bytes", "it fell off the bus", 7, 9),
        refusal("device_used_bytes", "no access", 4.5, 4.5),
    ]
    rows = [(t, "nvml", "G", "process_used_bytes", 5) for t in (3, 6)]
    write(tmp_path, host(10) + rows, nvml=True, devices=[{"uuid": "G", "ordinal": 0}],
          refusals=refusals)  # fmt: skip
    said = summarise(tmp_path, [
        window("run", 1, 10), window("load", 1, 2.5), window("train", 4, 5),
        window("train", 6.5, 6.8), window("evaluate", 7.5, 8),
    ])  # fmt: skip
    reasons = {p: number(said, "device_process_peak_bytes", p, "G").reason
               for p in ("run", "load", "train", "evaluate")}  # fmt: skip
    assert reasons == {
        "run": None, "load": "no context yet", "evaluate": "it fell off the bus",
        "train": "it was not read while the phase was on",
    }  # fmt: skip
    assert number(said, "device_used_peak_bytes", "train", "G").reason == "no access"
    assert number(said, "device_used_baseline_bytes", "run", "G").reason == "no access"


def test_notes_without_a_trace_and_a_trace_without_notes_are_read(tmp_path):
    write(tmp_path, host(5))
    (tmp_path / notes.NOTES).unlink()
    said = summarise(tmp_path, [window("run", 1, 4)])
    assert number(said, "sampling_gap_p50_seconds").value == pytest.approx(0.05)
    write(tmp_path, host(5), nvml=True)
    (tmp_path / TRACE).unlink()
    said = summarise(tmp_path, [window("run", 1, 4)])
    assert all(f.value is None and f.reason for f in said.found) and said.found
    assert "sampler_died" in doubts(said)
    assert summarise(tmp_path, []).found == []


def test_windows_without_a_run_have_one_around_them(tmp_path):
    write(tmp_path, host(5))
    said = summarise(tmp_path, [window("load", 1, 2), window("train", 2, 4)])
    assert number(said, "sampling_gap_max_seconds", "run").value == pytest.approx(0.05)


def test_the_summary_waits_a_moment_for_a_helper_that_is_still_writing(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        write(tmp_path, host(1), ended=None, sampler_pid=child.pid)
        late = threading.Timer(0.15, lambda: write(tmp_path, host(5), sampler_pid=child.pid))
        late.start()
        said = summarise(tmp_path, [window("run", 1, 4)])
        late.join()
        assert doubts(said) == {}
        write(tmp_path, host(1), ended=None, sampler_pid=child.pid)
        begin = time.monotonic()
        summarise(tmp_path, [window("run", 0, 1)])
        assert 0.4 < time.monotonic() - begin < 5
    finally:
        child.communicate(b"\n")
    write(tmp_path, host(1), ended=None, sampler_pid=os.getpid())
    begin = time.monotonic()
    summarise(tmp_path, [window("run", 0, 1)])
    assert time.monotonic() - begin < 0.4


def test_time_grows_with_rows_and_windows_not_with_their_product(tmp_path):
    def seconds(n):
        rows = [(k * 0.01, "nvml", "G", m, k) for k in range(n)
                for m in ("device_used_bytes", "energy_joules", "power_watts")]  # fmt: skip
        write(tmp_path, rows, nvml=True)
        steps = [window("train", k * 0.01 + 0.002, k * 0.01 + 0.008) for k in range(n - 1)]
        begin = time.process_time()
        said = summarise(tmp_path, [window("run", 0, n * 0.01 - 0.01), *steps])
        assert number(said, "energy_joules", "train", "G").value == pytest.approx(0.6 * (n - 1))
        return time.process_time() - begin

    small = min(seconds(1_000) for _ in range(3))
    assert seconds(8_000) < 30 * small  # 8 times the size; the product would be 64
