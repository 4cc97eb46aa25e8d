"""The self-check: meters that tell the truth pass, each lie is caught, and fails the command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from torch.profiler import ProfilerActivity, profile

from bench.cli import selfcheck
from bench.devices import rapl
from bench.sampler.trace import Row
from bench.selfcheck import child, cpu, everything, known, sampling
from bench.selfcheck.verdict import broken, furthest, judge, missing, told

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
linux = pytest.mark.skipif(sys.platform != "linux", reason="VmHWM and the preload are Linux' own")


# ------------------------------------------------------------------------------------ the verdict


@pytest.mark.parametrize(
    ("measured", "state"), [(1.0, "ok"), (1.1, "ok"), (0.85, "wrong"), (float("nan"), "wrong")]
)
def test_a_value_is_judged_by_what_is_known(measured, state):
    assert judge("ruler", "a metre", 1.0, measured, 0.101, "m").state == state


def test_of_several_values_the_one_furthest_off_decides():
    assert furthest("ruler", "a metre", 1.0, [1.0, 0.5, 1.2], 0.3).measured == 0.5


# --------------------------------------------------------------------------------------- the work


def test_backpropagation_needs_what_the_arithmetic_says():
    with torch.random.fork_rng():
        case = next(c for c in known.cases() if "backprop" in c.name)
    case.work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        case.work()
    alive = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    # the loss, its gradient, and ones of four bytes are left out by the arithmetic
    assert 0 <= most - case.known_bytes < 4096


# ------------------------------------------------------------------------------- memory and clocks


def honest() -> dict[str, object]:
    peaks = {case.name: [float(case.known_bytes)] * 3 for case in known.cases()}
    return {"peaks": {m: dict(peaks) for m in cpu.METERS}, "unavailable": {}}


def test_known_bytes_pass_and_one_peak_that_lies_is_caught_where_it_lies():
    assert {v.state for v in cpu.memory(honest())} == {"ok"}
    lying = honest()
    name = "one of 8 MiB"
    lying["peaks"]["host_allocated_peak_bytes"][name] = [8 * MIB, 7.95 * MIB, 8 * MIB]
    wrong = [v for v in cpu.memory(lying) if v.state == "wrong"]
    assert [(v.meter, v.case, v.measured) for v in wrong] == [("heap counter", name, 7.95 * MIB)]


def test_many_small_tensors_may_be_off_by_more_and_not_by_everything():
    for share, states in ((0.029, {"ok"}), (0.031, {"ok", "wrong"})):
        found = honest()
        for case in known.cases():
            if case.many_small:
                off = [case.known_bytes * (1 + share)]
                found["peaks"]["host_allocated_peak_bytes"][case.name] = off
        assert {v.state for v in cpu.memory(found)} == states


def test_a_tracker_that_is_not_here_is_unavailable_and_a_dead_child_is_wrong():
    found = honest()
    del found["peaks"]["host_allocated_peak_bytes"]
    found["unavailable"] = {"host_allocated_peak_bytes": "no compiler"}
    first, *rest = cpu.memory(found)
    assert (first.state, first.detail) == ("unavailable", "no compiler")
    assert {v.state for v in rest} == {"ok"}
    (verdict,) = cpu.memory("the process ended with -9: no reason")
    assert verdict.state == "wrong" and "-9" in verdict.detail
    (verdict,) = cpu.clocks("the process ended with -9: no reason")
    assert verdict.state == "wrong"


CLOCKS = {
    "sleeps": [0.1003, 0.3],
    "wall": 0.5,
    "monotonic": 0.5,
    "asleep_cpu": 0.001,
    "burnt_cpu": 0.41,
    "burnt_cpu_proc": 0.4,
}


@pytest.mark.parametrize(
    ("lie", "caught"),
    [
        ({}, None),
        ({"sleeps": [0.09, 0.2]}, "shortest of 5 sleeps of 0.1 s"),
        ({"monotonic": 0.45}, "against the wall clock"),
        ({"asleep_cpu": 0.05}, "asleep for 0.1 s"),
        ({"burnt_cpu": 0.2}, "2 threads of 0.2 s each"),  # one thread alone was counted
        ({"burnt_cpu_proc": 40.0}, "2 threads of 0.2 s each"),  # ticks taken for seconds
    ],
)
def test_a_clock_that_lies_is_caught(lie, caught):
    wrong = [v.case for v in cpu.clocks({**CLOCKS, **lie}) if v.state == "wrong"]
    assert wrong == ([caught] if caught else [])


def test_a_child_that_fails_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(child, "__name__", "not this")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert cpu._child("time") == "the process ended with 1: no reason"


def test_what_linux_may_be_late_by_grows_with_the_cpus(monkeypatch):
    monkeypatch.setattr(cpu.threads, "count", lambda asked: 1)
    monkeypatch.setattr(cpu.os, "cpu_count", lambda: 2)
    assert cpu.late_bytes() == 512 * 1024
    monkeypatch.setattr(cpu.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(cpu.threads, "count", lambda asked: 8)
    assert cpu.late_bytes() == 2 * 128 * 8 * 4096


# ------------------------------------------------------------------------------------ the sampler

SECOND = 1_000_000_000
BORDERS = [0, SECOND, 2 * SECOND, 3 * SECOND]


def trace(held=sampling.HELD_BYTES, seconds=0.6, interval=0.05) -> list[Row]:
    rows = []
    for number in range(int(3.1 / interval)):
        t = int(number * interval * SECOND)
        rss = 500 * MIB + (held if BORDERS[1] <= t < BORDERS[2] else 0)
        burnt = min(max(t / SECOND - 2, 0) / 0.6, 1) * seconds
        rows.append(Row(t, "host", "", "rss_bytes", rss))
        rows.append(Row(t, "host", "", "cpu_seconds", 7 + burnt))
    return rows


@pytest.mark.parametrize(
    ("lie", "caught"),
    [
        ({}, []),
        ({"held": 100 * MIB}, ["sampler, resident set"]),
        ({"seconds": 0.06}, ["sampler, CPU seconds"]),
        ({"interval": 0.2}, ["sampler, interval"]),
    ],
)
def test_a_sampler_that_lies_is_caught(lie, caught):
    several = list(sampling.judged(trace(**lie), BORDERS))
    assert [v.meter for v in several if v.state == "wrong"] == caught


def test_a_sampler_that_looks_away_while_bytes_are_held_is_wrong():
    rows = [r for r in trace() if not BORDERS[1] <= r.t_ns < BORDERS[2]]
    (verdict,) = sampling.judged(rows, BORDERS)
    assert verdict.state == "wrong" and "0 within it" in verdict.detail


def test_a_sampler_that_cannot_start_is_wrong(monkeypatch):
    monkeypatch.setattr(sampling.Sampler, "start", lambda self: None)
    monkeypatch.setattr(sampling, "_known_work", lambda: BORDERS)
    (verdict,) = sampling.verdicts()
    assert verdict.state == "wrong" and verdict.detail == "it left no trace"


def test_counters_of_the_cpu_that_stand_still_are_caught(monkeypatch, tmp_path):
    folder = tmp_path / "intel-rapl:0"
    folder.mkdir()
    (folder / "name").write_text("package-0\n")
    (folder / "max_energy_range_uj").write_text("262143328850\n")
    (folder / "energy_uj").write_text("1000000\n")
    monkeypatch.setattr(sampling.rapl, "packages", lambda: rapl_packages(tmp_path))
    monkeypatch.setattr(sampling, "_burn", lambda seconds: None)
    (verdict,) = sampling.packages()
    assert verdict.state == "wrong" and "did not rise" in verdict.detail
    monkeypatch.setattr(
        sampling, "_burn", lambda seconds: (folder / "energy_uj").write_text("31000000\n")
    )
    (verdict,) = sampling.packages()
    assert (verdict.state, verdict.measured) == ("told", 30.0)


rapl_packages = rapl.packages


# -------------------------------------------------------------------------------- the command line


def verdicts():
    yield judge("heap counter", "one of 8 MiB", 8 * MIB, 8 * MIB, 1.0)
    yield missing("NVML", "is it there", "no driver")
    yield told("NVML calls", "memory", 2e-5, "s", "median of 20")


def test_only_a_meter_that_lies_fails_the_check(monkeypatch, capsys):
    monkeypatch.setattr(everything, "verdicts", verdicts)
    selfcheck.run(as_json=False)
    said = capsys.readouterr().out
    assert "3 checks: 1 ok, 1 unavailable, 1 told" in said and "no driver" in said
    assert "8.000 MiB" in said and "0.020 ms" in said
    monkeypatch.setattr(everything, "verdicts", lambda: [*verdicts(), broken("x", "y", "lies")])
    with pytest.raises(typer.Exit) as ended:
        selfcheck.run(as_json=True)
    assert ended.value.exit_code == 3
    body = json.loads(capsys.readouterr().out)
    assert body["wrong"] == 1 and body["verdicts"][-1]["detail"] == "lies"


@linux
def test_every_meter_of_this_machine_tells_the_truth(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bench", "doctor", "--selfcheck", "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout)["verdicts"]
    wrong = [v for v in found if v["state"] == "wrong"]
    # How often a helper gets its turn is the machine's: a busy one is told, not failed here.
    assert [v for v in wrong if v["meter"] != "sampler, interval"] == []
    assert done.returncode == (3 if wrong else 0)
    cases = {(v["meter"], v["case"]) for v in found if v["state"] == "ok"}
    assert ("peak resident set (VmHWM)", "one of 8 MiB") in cases
    assert ("sampler, resident set", "128 MiB held for 0.6 s") in cases
    assert ("CPU seconds", "2 threads of 0.2 s each") in cases
    if not any(v["meter"] == "heap counter" and v["state"] == "unavailable" for v in found):
        assert ("heap counter", "20,000 of 16 KiB") in cases
