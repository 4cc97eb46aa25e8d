"""The helper as it ships: a real process, real time, deaths of all kinds."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
from scripted import GIB, ONE_GPU

from bench.sampler import Sampler, Window, gpus, helper, notes, summarise, trace

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc: Linux only")

ROOT = Path(helper.__file__).resolve().parents[2]
GPU = "GPU-aaaaaaaa-1111-2222-3333-444444444444"


def sampler_of(folder, **changes):
    return Sampler(folder, pid=os.getpid(), visible=None, **{"nvml": False, **changes})


def rows(folder, metric="rss_bytes"):
    return [r for r in trace.read(folder / trace.TRACE) if r.metric == metric]


def wait_for(what, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def gone(pid):
    """Whether a process has ended (nobody may have asked for its exit code yet)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_readings_come_as_often_as_asked(tmp_path):
    begin = time.monotonic_ns()
    with sampler_of(tmp_path):
        started = time.monotonic_ns()
        time.sleep(2)
        end = time.monotonic_ns()
    said = summarise(tmp_path, [Window("run", started, end, 0)])
    gap = {f.metric: f.value for f in said.found if f.metric.startswith("sampling_gap")}
    assert gap["sampling_gap_p50_seconds"] == pytest.approx(0.05, abs=0.005)
    assert gap["sampling_gap_max_seconds"] < 1
    times = [r.t_ns for r in rows(tmp_path)]
    assert times[0] >= begin and times[-1] >= end  # a last reading comes with the end
    assert 38 <= len(times) <= 45
    assert not [d for d in said.doubts if d.name in ("sampler_died", "trace_incomplete")]
    assert notes.read(tmp_path)["ended"]["why"] == "stopped"


def test_a_mark_is_a_full_reading_at_once(tmp_path):
    with sampler_of(tmp_path, interval_seconds=5.0) as sampler:
        marked = time.monotonic_ns()
        sampler.mark()
        wait_for(lambda: len(rows(tmp_path, "machine_busy_seconds")) == 2)
        (_, second) = rows(tmp_path, "machine_busy_seconds")
        assert 0 < second.t_ns - marked < 10**9


def test_ten_thousand_marks_hold_nobody_up(tmp_path):
    with sampler_of(tmp_path) as sampler:
        os.kill(sampler._process.pid, signal.SIGSTOP)
        begin = time.monotonic()
        for _ in range(20_000):
            sampler.mark()
        assert time.monotonic() - begin < 1
        os.kill(sampler._process.pid, signal.SIGCONT)


def test_closing_twice_or_before_the_start_is_nothing(tmp_path):
    sampler = sampler_of(tmp_path)
    sampler.mark()
    sampler.close()
    sampler.start()
    pid = sampler._process.pid
    sampler.close()
    sampler.close()
    sampler.mark()
    assert gone(pid)


def test_a_helper_that_does_not_answer_is_ended_within_two_seconds(tmp_path):
    sampler = sampler_of(tmp_path)
    sampler.start()
    pid = sampler._process.pid
    os.kill(pid, signal.SIGSTOP)
    begin = time.monotonic()
    sampler.close()
    assert time.monotonic() - begin < 2.3 and gone(pid)
    assert rows(tmp_path)


def test_a_helper_that_was_killed_leaves_its_readings_and_a_doubt(tmp_path):
    sampler = sampler_of(tmp_path)
    sampler.start()
    begin = time.monotonic_ns()
    time.sleep(0.6)
    os.kill(sampler._process.pid, signal.SIGKILL)
    time.sleep(1.5)
    sampler.mark()
    sampler.close()
    end = time.monotonic_ns()
    said = summarise(tmp_path, [Window("run", begin, end, 0)])
    (doubt,) = (d for d in said.doubts if d.name == "sampler_died")
    assert doubt.severity == "suspect" and "killed" in doubt.text
    assert len(rows(tmp_path)) >= 4
    found = {f.metric: f.value for f in said.found}
    assert found["sampling_gap_max_seconds"] > 1.4


PARENT = """
import os, signal, subprocess, sys, time
from pathlib import Path
from bench.sampler import Sampler
folder, interval = Path(sys.argv[1]), float(sys.argv[2])
sampler = Sampler(folder, pid=os.getpid(), visible=None, interval_seconds=interval, nvml=False)
sampler.start()
hold = subprocess.Popen(["sleep", "30"], pass_fds=[sampler._process.stdin.fileno()])
print(sampler._process.pid, hold.pid, flush=True)
time.sleep(0.5)
if len(sys.argv) > 3:
    signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"polite\\n"))  # print may be running
    print("listening", flush=True)
for _ in range(300):  # a signal on the brink of a sleep is heard after it
    time.sleep(0.1)
"""


@pytest.fixture
def parent():
    """Starts a process that samples itself; ends it and what it started."""
    started, held = [], []

    def start(folder, interval=0.05, *more):
        process = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(folder), str(interval), *more],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            start_new_session=True,
        )
        started.append(process)
        helper_pid, hold_pid = map(int, process.stdout.readline().split())
        held.append(hold_pid)
        return process, helper_pid

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
    for pid in held:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_parent_that_is_killed_takes_the_helper_along_and_the_trace_is_whole(tmp_path, parent):
    # A child of the parent holds the pipe open, as a data loader's worker may: no end of file.
    process, helper_pid = parent(tmp_path)
    time.sleep(0.6)
    process.kill()
    process.wait()
    wait_for(lambda: gone(helper_pid), 3)
    assert len(rows(tmp_path)) >= 8
    assert notes.read(tmp_path)["ended"]["why"] == "the run's process ended"


def test_the_end_of_the_parent_is_heard_in_the_middle_of_a_long_wait(tmp_path, parent):
    process, helper_pid = parent(tmp_path, 60)
    process.kill()
    process.wait()
    wait_for(lambda: gone(helper_pid), 3)


def test_a_group_told_politely_to_end_is_sampled_until_it_has(tmp_path, parent):
    process, helper_pid = parent(tmp_path, 0.05, "listen")
    assert process.stdout.readline() == "listening\n"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(helper_pid, number)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.stdout.readline() == "polite\n"
    told = time.monotonic_ns()
    time.sleep(0.7)
    assert not gone(helper_pid)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: gone(helper_pid), 3)
    assert [r for r in rows(tmp_path) if r.t_ns > told + 100_000_000]


def test_the_helper_reads_the_scripted_driver_in_real_time(tmp_path, nvml, monkeypatch):
    scenario = f"{ONE_GPU}\nat 0 0 power 100\nat 0 0 mem {GIB}\nproc 0 4242 0 -"
    environment = nvml.startup(scenario)
    monkeypatch.setattr(helper, "_environment", lambda: {**environment, "PYTHONPATH": str(ROOT)})
    with sampler_of(tmp_path, nvml=True):
        begin = time.monotonic_ns()
        time.sleep(1.0)
        end = time.monotonic_ns()
    said = summarise(tmp_path, [Window("run", begin, end, 0)])
    found = {(f.metric, f.device): f.value for f in said.found}
    assert found["device_used_peak_bytes", GPU] == GIB
    assert found["energy_joules", GPU] == pytest.approx(100, abs=25)
    assert found["sampling_gap_p50_seconds", GPU] == pytest.approx(0.05, abs=0.01)
    assert {"other_process", "not_idle_at_start"} <= {d.name for d in said.doubts}


def test_a_helper_inside_a_driver_that_hangs_ends_with_the_run(tmp_path, nvml, monkeypatch):
    environment = nvml.startup(f"{ONE_GPU}\nhang nvmlDeviceGetPowerUsage 0 0.5 1000")
    monkeypatch.setattr(helper, "_environment", lambda: {**environment, "PYTHONPATH": str(ROOT)})
    sampler = sampler_of(tmp_path, nvml=True)
    sampler.start()
    pid, started = sampler._process.pid, time.monotonic_ns()
    time.sleep(2)
    begin = time.monotonic()
    sampler.close()
    assert time.monotonic() - begin < 2.3 and gone(pid)
    assert [r for r in rows(tmp_path) if r.t_ns > started + 1_500_000_000]  # the host, meanwhile
    said = summarise(tmp_path, [Window("run", started, time.monotonic_ns(), 0)])
    assert "nvml_hangs" in {d.name for d in said.doubts}


def test_the_helper_loads_nothing_heavy_and_nothing_that_was_preloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "/no/such/library.so")
    with sampler_of(tmp_path) as sampler:
        pid = sampler._process.pid
        libraries = Path(f"/proc/{pid}/maps").read_text()
        variables = Path(f"/proc/{pid}/environ").read_text()
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    assert "LD_PRELOAD" not in variables
    assert not [name for name in ("torch", "numpy", "pydantic") if name in libraries]
    assert resident < 64 << 20


def test_a_folder_named_bench_where_the_user_stands_is_not_taken_for_ours(tmp_path, monkeypatch):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text("raise SystemExit(9)\n")
    monkeypatch.chdir(tmp_path)
    with sampler_of(tmp_path):
        pass
    assert rows(tmp_path)


def test_a_helper_that_can_not_start_is_a_doubt_and_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    sampler = sampler_of(tmp_path, nvml=True)
    sampler.start()
    sampler.mark()
    sampler.close()
    said = summarise(tmp_path, [Window("run", 0, 10**9, 0)])
    assert [d.name for d in said.doubts] == ["sampler_died"]
    assert said.found and all(f.value is None and "exit code 1" in f.reason for f in said.found)
    monkeypatch.setattr(sys, "executable", "/no/python")
    sampler.start()
    sampler.close()
    assert "could not be started" in notes.read(tmp_path)["failed"]


def test_a_helper_that_opens_its_devices_slowly_is_waited_for(tmp_path, nvml, monkeypatch):
    assert 20 <= gpus._OPEN_SECONDS < helper._START_SECONDS
    environment = nvml.startup(f"{ONE_GPU}\nhang nvmlInit* * 0 6")
    monkeypatch.setattr(helper, "_environment", lambda: {**environment, "PYTHONPATH": str(ROOT)})
    with sampler_of(tmp_path, nvml=True, device="cuda:0"):
        assert [r for r in rows(tmp_path, "device_used_bytes")]
    assert notes.read(tmp_path)["device"] == "cuda:0"


def test_a_helper_that_comes_too_late_leaves_no_baseline_and_a_doubt(tmp_path, nvml, monkeypatch):
    environment = nvml.startup(f"{ONE_GPU}\nhang nvmlInit* * 0 3")
    monkeypatch.setattr(helper, "_environment", lambda: {**environment, "PYTHONPATH": str(ROOT)})
    monkeypatch.setattr(helper, "_START_SECONDS", 0.5)
    sampler = sampler_of(tmp_path, nvml=True)
    begin = time.monotonic_ns()
    sampler.start()
    assert time.monotonic_ns() - begin < 2.5e9
    assert notes.read(tmp_path)["late"] is True  # also where the helper never comes up
    wait_for(lambda: rows(tmp_path, "device_used_bytes"))
    wait_for(lambda: "sampler_pid" in notes.read(tmp_path))
    sampler.close()
    said = summarise(tmp_path, [Window("run", begin, time.monotonic_ns(), 0)])
    assert "sampler_late" in {d.name for d in said.doubts}
    (baseline,) = (f for f in said.found if f.metric == "device_used_baseline_bytes")
    assert baseline.value is None and "after the run had begun" in baseline.reason


@pytest.mark.parametrize("folder", ["missing", "file"])
def test_a_folder_that_can_not_be_written_to_is_no_error(tmp_path, folder):
    (tmp_path / "file").write_text("")
    with sampler_of(tmp_path / folder) as sampler:
        sampler.mark()
    assert summarise(tmp_path / folder, [Window("run", 0, 1, 0)]).found == []


def test_a_disk_that_is_full_leaves_what_came_before_and_a_doubt(tmp_path, monkeypatch):
    limited = f'ulimit -f 4; exec {sys.executable} "$@"'
    program = tmp_path / "limited"
    program.write_text(f"#!/bin/sh\n{limited}\n")
    program.chmod(0o755)
    folder = tmp_path / "run"
    folder.mkdir()
    monkeypatch.setattr(sys, "executable", str(program))
    with sampler_of(folder, interval_seconds=0.002):
        begin = time.monotonic_ns()
        time.sleep(2)
        end = time.monotonic_ns()
    said = summarise(folder, [Window("run", begin, end, 0)])
    assert (folder / trace.TRACE).stat().st_size <= 4096
    (doubt,) = (d for d in said.doubts if d.name == "trace_incomplete")
    assert (
        doubt.severity == "suspect" and "too large" in doubt.text and " 0 rows" not in doubt.text
    )
    times = [r.t_ns for r in rows(folder)]
    assert (
        len(times) > 20 and statistics.median(b - a for a, b in itertools.pairwise(times)) < 10**8
    )
