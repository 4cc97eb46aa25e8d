"""A run killed at any moment goes on to the bits of one that was not; and can be replayed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from bench import executor, models, replay
from bench.cell import EVENTS, read_events, write_cell
from bench.phases import windows
from bench.records import UserError
from zo_core import Params


def run_one(results, cell):
    (record,) = executor.run(results, [cell], lambda *_: None)
    return record


def steps_of(folder):
    return sum(e["event"] == "step" for e in read_events(folder))


def kill_after(results, cell, steps, number=signal.SIGKILL):
    """Start the cell and end its process (kill -9) once it has taken so many steps."""
    folder = cell.folder(results)
    write_cell(folder, cell)
    worker = subprocess.Popen(
        [sys.executable, "-m", "bench.worker", str(folder), str(os.getpid())],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while steps_of(folder) < steps:
        assert time.monotonic() < deadline and worker.poll() is None
        time.sleep(0.002)
    worker.send_signal(number)
    worker.wait()
    assert not (folder / "record.json").exists()
    return steps_of(folder)


def names(record):
    """Return the names of a record's flags; others than the tested ones are the machine's."""
    return [f.name for f in record.flags]


def digest_of(folder):
    return [e["digest"] for e in read_events(folder) if e["event"] == "weights"][-1]


METHODS = [  # that every method resumes from its log is a law; here the processes do
    ("mezo", {"rounding": "stochastic"}, {"dtype": "bfloat16"}),
    ("mezo_svrg", {}, {"anchor_examples": 8, "lr_schedule": "cosine", "lr_warmup_steps": 2}),
]


@pytest.mark.parametrize("method,options,more", METHODS, ids=lambda v: v if type(v) is str else "")
def test_a_killed_run_ends_in_the_bits_of_an_uninterrupted_one(
    method, options, more, tmp_path, tiny_cell
):
    cell = tiny_cell(method=method, options=options, steps=60, eval_every=20, **more)
    whole = run_one(tmp_path / "whole", cell)
    killed_at = kill_after(tmp_path / "killed", cell, 25)
    assert killed_at < 60
    again = run_one(tmp_path / "killed", cell)
    assert again.status == whole.status == "completed"
    folders = [cell.folder(tmp_path / name) for name in ("whole", "killed")]
    assert digest_of(folders[0]) == digest_of(folders[1])
    assert again.steps.losses == whole.steps.losses
    assert [e.step for e in again.evaluations] == [0, 20, 40, 60]
    assert [e.predictions for e in again.evaluations] == [e.predictions for e in whole.evaluations]
    assert again.evaluations[-1].forward_passes == whole.evaluations[-1].forward_passes
    assert (folders[0] / "trajectory.bin").read_bytes() == (
        folders[1] / "trajectory.bin"
    ).read_bytes()
    (flag,) = [f for f in again.flags if f.name == "resumed"]
    assert int(flag.text.split()[-1]) >= 20 and "resumed" not in names(whole)
    resumed_at = max(e["t_ns"] for e in read_events(folders[1]) if e["event"] == "start")
    assert min(w.begin_ns for w in windows(read_events(folders[1]))) > resumed_at
    hours = {m.metric: m for m in again.measurements if m.unit == "h"}
    assert "resumed" in hours["cpu_hours_reserved"].reason
    assert hours["cpu_hours_train"].value == pytest.approx(
        sum(again.steps.seconds) * again.environment.threads / 3600
    )
    assert again.value("phase_seconds", "resume") > 0
    seconds = again.value("phase_seconds", "run")
    own = [m.value for m in again.measurements if m.metric == "phase_self_seconds"]
    assert sum(own) == pytest.approx(seconds, rel=0.01)


def test_a_first_order_run_resumes_from_what_was_saved(tmp_path, tiny_cell):
    cell = tiny_cell(method="ft_adamw", steps=60, save_every=10, eval_every=20)
    whole = run_one(tmp_path / "whole", cell)
    kill_after(tmp_path / "killed", cell, 25)
    again = run_one(tmp_path / "killed", cell)
    assert again.steps.losses == whole.steps.losses and len(whole.steps.losses) == 60
    assert [e.predictions for e in again.evaluations] == [e.predictions for e in whole.evaluations]
    (flag,) = [f for f in again.flags if f.name == "resumed"]
    assert int(flag.text.split()[-1]) % 10 == 0


def test_a_memory_run_begins_anew(tmp_path, tiny_cell):
    cell = tiny_cell(steps=20, measure="memory", eval_examples=0)
    kill_after(tmp_path, cell, 5)
    record = run_one(tmp_path, cell)
    assert "resumed" not in names(record) and len(record.steps.losses) == 20


def test_other_code_begins_anew(tmp_path, tiny_cell):
    cell = tiny_cell(steps=60)
    kill_after(tmp_path, cell, 25)
    path = cell.folder(tmp_path) / EVENTS
    path.write_text(path.read_text().replace('"code": "', '"code": "0'))
    record = run_one(tmp_path, cell)
    assert "resumed" not in names(record) and len(record.steps.losses) == 60


# ---------------------------------------------------------------------------------------- replay


def test_a_replay_gives_the_live_weights_and_a_checkpoint_of_them(tmp_path, tiny_cell):
    cell = tiny_cell(steps=30)
    run_one(tmp_path, cell)
    folder = cell.folder(tmp_path)
    out = subprocess.run(
        [sys.executable, "-m", "bench", "replay", folder, "--export", tmp_path / "ckpt", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert out.returncode == 0, out.stderr
    told = json.loads(out.stdout)
    assert told["equal"] is True and told["steps"] == 30
    loaded = models.load(str(tmp_path / "ckpt"), dtype="float32", device="cpu", seed=99)
    start = models.load("opt-tiny", dtype="float32", device="cpu", seed=0)
    ends = replay.replay(folder).built.params
    for param, fresh, first in zip(
        ends, Params.of(loaded.module), Params.of(start.module), strict=True
    ):
        assert torch.equal(param.tensor, fresh.tensor)
        assert not torch.equal(param.tensor, first.tensor)
    assert load_file(tmp_path / "ckpt" / "model.safetensors")


@pytest.mark.parametrize("tuning", ["lora", "prefix"])
def test_what_is_exported_of_a_tuned_run_is_all_that_was_trained(tuning, tmp_path, tiny_cell):
    cell = tiny_cell(steps=3, tuning=tuning, lr=1e-2)
    run_one(tmp_path, cell)
    done = replay.replay(cell.folder(tmp_path))
    assert done.equal is True
    batch = done.built.task.batch(0)
    with torch.no_grad():
        loss = done.built.task.loss(done.built.module, batch)
    files = replay.export(done, tmp_path / "out")
    if tuning == "prefix":
        assert files == ["spec.json", "trained.safetensors"]
        saved = load_file(tmp_path / "out" / "trained.safetensors")
        assert all(torch.equal(saved[p.name], p.tensor) for p in done.built.params)
        return
    merged = models.load(str(tmp_path / "out"), dtype="float32", device="cpu", seed=0).module
    start = models.load("opt-tiny", dtype="float32", device="cpu", seed=0).module
    with torch.no_grad():
        assert torch.allclose(done.built.task.loss(merged, batch), loss, atol=1e-5)
        assert not torch.allclose(done.built.task.loss(start, batch), loss, atol=1e-3)


def test_a_run_ended_politely_resumes_and_tells_each_number_once(tmp_path, tiny_cell):
    """As Ctrl-C does: the worker writes down what it measured before it dies."""
    cell = tiny_cell(steps=60, warmup_steps=2)
    folder = cell.folder(tmp_path)
    kill_after(tmp_path, cell, 25, signal.SIGTERM)
    early = [e["metric"] for e in read_events(folder) if e["event"] == "measurement"]
    assert "phase_seconds" in early and "estimate_drift_rms" in early
    record = run_one(tmp_path, cell)
    assert "resumed" in names(record) and len(record.steps.losses) == 60
    told = [(m.metric, m.phase, m.device) for m in record.measurements]
    assert len(told) == len(set(told)) and ("estimate_drift_rms", "train", None) in told


def test_a_torn_last_event_is_dropped_by_the_next_process(tmp_path, tiny_cell):
    cell = tiny_cell(steps=40)
    kill_after(tmp_path, cell, 10)
    path = cell.folder(tmp_path) / EVENTS
    path.write_bytes(path.read_bytes() + b'{"event": "step", "lo')
    record = run_one(tmp_path, cell)
    assert record.status == "completed" and len(record.steps.losses) == 40
    assert "resumed" in names(record)


def test_another_log_is_found_out(tmp_path, tiny_cell):
    cell = tiny_cell(steps=5)
    run_one(tmp_path, cell)
    path = cell.folder(tmp_path) / "trajectory.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    assert replay.replay(cell.folder(tmp_path)).equal is False
    path.write_bytes(whole)
    assert replay.replay(cell.folder(tmp_path)).equal is True
    assert replay.replay(cell.folder(tmp_path), retrace=False).equal is False  # drift


def test_what_can_t_be_replayed_says_so(tmp_path, tiny_cell):
    with pytest.raises(UserError, match="not the folder of a run"):
        replay.replay(tmp_path)
    cell = tiny_cell(method="ft_sgd")
    run_one(tmp_path, cell)
    with pytest.raises(UserError, match="only zeroth-order runs"):
        replay.replay(cell.folder(tmp_path))
