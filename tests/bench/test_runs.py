"""Whole runs in fresh processes: what they leave behind, and what survives when they die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from bench import executor, models, store, tasks
from bench.cell import EVENTS, read_events, write_cell
from bench.phases import windows
from bench.records import read_record
from zo_core import Closure, Params, Trajectory, derive_seed, methods

linux = pytest.mark.skipif(sys.platform != "linux", reason="VmHWM and RLIMIT_DATA are Linux's")


def run_one(tmp_path, cell):
    (record,) = executor.run(tmp_path, [cell], lambda *_: None)
    assert read_record(cell.folder(tmp_path) / "record.json") == record
    return record


def values(record, metric):
    return {m.phase: m.value for m in record.measurements if m.metric == metric}


def test_a_timed_run_is_whole(tmp_path, tiny_cell):
    cell = tiny_cell(eval_every=2)
    record = run_one(tmp_path, cell)
    assert (record.status, record.key, record.suite) == ("completed", cell.spec.key, "tiny")
    assert len(record.steps.losses) == len(record.steps.seconds) == 3
    assert record.steps.queries == [2, 2, 2] and record.steps.backwards == [0, 0, 0]
    assert [e.step for e in record.evaluations] == [0, 2, 3]
    assert [e.forward_passes for e in record.evaluations] == [0, 4, 6]
    last = record.evaluations[-1]
    hits = zip(last.predictions, record.task.eval_labels, strict=True)
    assert last.correct == sum(p == t for p, t in hits) and last.n == 8
    assert last.train_seconds == pytest.approx(sum(record.steps.seconds))
    assert record.model.trained_parameters == record.model.parameters
    assert record.model.parameter_bytes == 4 * record.model.parameters
    assert record.declared.queries == 2 and record.declared.state_bytes == 0
    heap = [m.metric for m in record.measurements if m.metric.startswith("host_allocated")]
    assert heap == [], "a time run does not count its heap, and misses nothing by it"
    assert set(record.files) == {"events", "log", "trajectory", "trace", "sampler"}
    assert all((cell.folder(tmp_path) / name).is_file() for name in record.files.values())
    assert record.environment.cpu_cores >= 1 and "torch" in record.environment.packages


def test_the_phases_of_a_timed_run_add_up_to_its_wall_time(tmp_path, tiny_cell):
    cell = tiny_cell(eval_every=2, steps=6)
    record = run_one(tmp_path, cell)
    seconds, own = values(record, "phase_seconds"), values(record, "phase_self_seconds")
    assert set(own) == {"run", "load", "train", "evaluate", "perturb", "forward", "update"}
    assert sum(own.values()) == pytest.approx(seconds["run"], rel=0.01)
    main = seconds["load"] + seconds["train"] + seconds["evaluate"] + own["run"]
    assert main == pytest.approx(seconds["run"], rel=0.01)
    inner = own["train"] + own["perturb"] + own["forward"] + own["update"]
    assert inner == pytest.approx(seconds["train"], rel=0.01)
    assert 0 < sum(record.steps.seconds) <= seconds["train"] < seconds["run"] < record.wall_seconds

    found = windows(read_events(cell.folder(tmp_path)))
    spans = {w.name: w for w in found if w.depth <= 1}
    for phase in ("run", "train", "evaluate", "forward"):
        told = sum(w.end_ns - w.begin_ns for w in found if w.name == phase) / 1e9
        assert told == pytest.approx(seconds[phase], rel=0.01), phase
    assert sum(w.name == "train" for w in found) == 6 and spans["run"].depth == 0

    hours = {m.metric: m for m in record.measurements if m.unit == "h"}
    assert set(hours) == {f"cpu_hours_{n}" for n in ("reserved", "train", "to_target", "busy")}
    cores = record.environment.threads
    reserved = hours["cpu_hours_reserved"].value
    assert reserved == pytest.approx(record.wall_seconds * cores / 3600)
    train = sum(record.steps.seconds) * cores / 3600
    assert hours["cpu_hours_train"].value == pytest.approx(train)
    assert 0 < hours["cpu_hours_busy"].value and "target_accuracy" in str(hours)


@linux
def test_a_memory_run_has_a_peak_per_phase_and_no_time(tmp_path, tiny_cell):
    record = run_one(tmp_path, tiny_cell(method="ft_adamw", measure="memory", eval_examples=0))
    peaks = values(record, "host_peak_bytes")
    assert set(peaks) == {"run", "load", "train", "forward", "backward", "update"}
    assert peaks["run"] >= peaks["train"] >= peaks["update"] > 0
    assert record.steps.seconds is None and not values(record, "phase_seconds")
    assert not values(record, "phase_self_seconds") and not values(record, "cpu_hours_train")
    assert values(record, "host_baseline_bytes")["run"] < peaks["run"]
    exact = [m for m in record.measurements if m.metric.endswith(("peak_bytes", "baseline_bytes"))]
    assert len(exact) >= 14 and {m.quality for m in exact} == {"exact"}
    assert not [m for m in record.measurements if m.metric.startswith("device_")]


def test_the_trajectory_of_a_run_rebuilds_its_weights(tmp_path, tiny_cell):
    cell = tiny_cell(eval_examples=0)
    run_one(tmp_path, cell)
    spec = cell.spec
    loaded = models.load(spec.model, dtype="float32", device="cpu", seed=spec.seed)
    live, task = Params.of(loaded.module), tasks.build(spec, loaded)
    method = methods.build(spec.method)
    state = method.init(live)
    for step in range(spec.steps):  # the same steps, here
        batch = task.batch(step)
        loss = Closure(lambda batch=batch: task.loss(loaded.module, batch))
        seed = derive_seed(spec.seed, step)
        state, _ = method.step_(live, loss, state, seed=seed, lr=spec.lr)
    again = models.load(spec.model, dtype="float32", device="cpu", seed=spec.seed).module
    trajectory = Trajectory.read(cell.folder(tmp_path) / "trajectory.bin")
    assert len(trajectory.steps) == 3
    trajectory.replay_(Params.of(again))
    moved = 0.0
    start = models.load(spec.model, dtype="float32", device="cpu", seed=spec.seed).module
    for a, b, c in zip(live.tensors, again.parameters(), start.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
        moved = max(moved, (b - c).abs().max().item())
    assert moved > 1e-5


def test_the_same_spec_gives_the_same_losses(tmp_path, tiny_cell):
    first = run_one(tmp_path / "a", tiny_cell())
    second = run_one(tmp_path / "b", tiny_cell(threads=1))
    assert first.steps.losses == pytest.approx(second.steps.losses, rel=1e-5)
    assert first.task.eval_digest == second.task.eval_digest


@linux
def test_loading_libraries_does_not_count_against_the_limit(tmp_path, tiny_cell):
    record = run_one(tmp_path, tiny_cell(memory_limit_bytes="64 MiB", measure="memory"))
    assert record.status == "completed", record.reason
    baseline = values(record, "host_baseline_bytes")["run"]
    assert values(record, "host_peak_bytes")["load"] - baseline < 16 * 2**20


@linux
def test_a_memory_limit_ends_one_method_and_lets_another_pass(tmp_path, tiny_cell):
    changes = {"model": "opt-125m", "task": "random_tokens", "eval_examples": 0, "steps": 1}
    changes |= {"measure": "memory", "batch_size": 1, "memory_limit_bytes": "900 MiB"}
    zeroth = run_one(tmp_path, tiny_cell(**changes))
    first = run_one(tmp_path, tiny_cell(**changes, method="ft_adamw"))
    assert zeroth.status == "completed", zeroth.reason
    assert first.status == "out_of_memory"
    assert first.failure.phase in ("backward", "update")
    limit = 900 * 2**20
    assert first.failure.bytes_limit == limit
    assert 0 < first.failure.bytes_requested < limit
    assert limit / 2 < first.failure.bytes_in_use <= limit
    assert first.failure.bytes_free == limit - first.failure.bytes_in_use
    taken = values(first, "host_peak_bytes")["run"] - values(first, "host_baseline_bytes")["run"]
    # The limit counts private writable memory alone; a resident set counts pages of libraries and
    # mapped files as well, and which of these are touched after the baseline differs by machine.
    mapped = 64 * 2**20
    assert 0.8 * limit < taken <= limit + mapped, "it was refused near the wall, not before"


def test_a_run_that_diverges_in_its_last_step_fails_and_can_be_read(tmp_path, tiny_cell):
    record = run_one(tmp_path, tiny_cell(lr=1e38, steps=1))
    assert record.status == "failed" and record.failure.cause == "NonFiniteLoss"
    assert [e.step for e in record.evaluations] == [0]


def test_a_diverging_run_fails_loudly_and_keeps_its_steps(tmp_path, tiny_cell):
    record = run_one(tmp_path, tiny_cell(lr=1e30, steps=50, eval_examples=0))
    assert record.status == "failed" and record.failure.cause == "NonFiniteLoss"
    assert "lower lr" in record.reason
    assert 1 <= len(record.steps.losses) == record.failure.step < 50


def test_a_run_past_its_time_is_ended_and_keeps_what_it_did(tmp_path, tiny_cell):
    record = run_one(tmp_path, tiny_cell(steps=10**6, time_limit_seconds=25.0, eval_examples=0))
    assert record.status == "timed_out" and record.failure.cause == "TimeLimit"
    assert len(record.steps.losses) > 0 and record.model is not None
    assert values(record, "phase_seconds")["train"] > 0, "what was measured is kept"


def test_what_the_model_cannot_do_is_unsupported(tmp_path, tiny_cell):
    record = run_one(tmp_path, tiny_cell(seq_len=10**6))
    assert record.status == "unsupported" and "10" in record.reason


def test_a_run_on_a_missing_device_says_so(tmp_path, tiny_cell):
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    record = run_one(tmp_path, tiny_cell(device="cuda"))
    assert record.status == "unsupported" and "CUDA" in record.reason


def test_a_killed_worker_leaves_a_record(tmp_path, tiny_cell):
    cell = tiny_cell(steps=10**6, eval_examples=0)

    def kill_once_running(_cell, _phase, steps):
        if steps:
            for pid in _running(str(cell.folder(tmp_path))):
                os.kill(pid, signal.SIGKILL)

    (record,) = executor.run(tmp_path, [cell], kill_once_running)
    assert record.status == "failed" and "SIGKILL" in record.reason
    assert record.steps.losses and record.environment is not None
    assert record.value("sampling_gap_p50_seconds", "run") > 0, "its trace is there to be read"
    hours = {m.metric: m for m in record.measurements if m.unit == "h"}
    assert hours["cpu_hours_train"].value > 0 and "died" in hours["cpu_hours_busy"].reason


def test_a_model_that_cannot_be_had_fails_its_own_cells_alone(tmp_path, tiny_cell, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cells = [tiny_cell(model="nobody/nothing"), tiny_cell(steps=1)]
    first, second = executor.run(tmp_path, cells, lambda *_: None)
    assert first.status == "failed" and "nobody/nothing" in first.reason
    assert second.status == "completed"


def test_only_failed_and_unfinished_runs_are_run_again(tmp_path, tiny_cell):
    done, broken = tiny_cell(steps=1), tiny_cell(lr=1e30, steps=50, eval_examples=0)
    list(executor.run(tmp_path, [done, broken], lambda *_: None))
    started = tiny_cell(steps=2)
    write_cell(started.folder(tmp_path), started)
    assert set(store.finished(tmp_path, [done, broken, started])) == {done.spec.key}


def test_a_torn_event_is_left_out(tmp_path):
    (tmp_path / EVENTS).write_text('{"event": "step", "loss": 1.0}\n{"event": "st')
    assert read_events(tmp_path) == [{"event": "step", "loss": 1.0}]


@linux
@pytest.mark.parametrize("when", ["starting", "training"])
def test_a_worker_dies_with_its_parent(tmp_path, tiny_cell, when):
    cell = tiny_cell(steps=10**6, eval_examples=0)
    code = (
        "import sys; from pathlib import Path; from bench import executor; "
        "from bench.cell import Cell; "
        "cell = Cell.model_validate_json(sys.argv[1]); "
        "list(executor.run(Path(sys.argv[2]), [cell], lambda *_: None))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, cell.model_dump_json(), str(tmp_path)])
    events = cell.folder(tmp_path) / EVENTS
    _until(
        lambda: (
            events.exists() and "step" in events.read_text()
            if when == "training"
            else (cell.folder(tmp_path) / "log.txt").exists()
        )
    )
    parent.kill()
    parent.wait()
    _until(lambda: not _running(str(cell.folder(tmp_path))))


def _running(argument: str) -> list[int]:
    """Return the processes that have ``argument`` on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if argument.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue  # it ended while we looked
    return found


def _until(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
