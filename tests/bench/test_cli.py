"""The command line as a user meets it: output, exit codes, interrupts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def zometer(*arguments, cwd=None, **variables):
    env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [sys.executable, "-m", "bench", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=env,
        check=False,
    )


def test_a_suite_is_run_kept_and_reported(tiny_suite, tmp_path):
    path, out = tiny_suite(), tmp_path / "results"
    first = zometer("run", path, "--out", out, "--json")
    assert first.returncode == 0, first.stderr
    lines = [json.loads(line) for line in first.stdout.splitlines()]
    assert [line["status"] for line in lines] == ["completed", "completed"]
    assert all(Path(line["record"]).is_file() for line in lines)
    stamps = [p.stat().st_mtime_ns for p in sorted(out.rglob("record.json"))]

    again = zometer("run", path, "--out", out)
    assert again.returncode == 0 and f"zometer report {out}" in again.stdout
    assert [p.stat().st_mtime_ns for p in sorted(out.rglob("record.json"))] == stamps

    report = zometer("report", out / "tiny", "--json")
    assert report.returncode == 0, report.stderr
    made = json.loads(report.stdout)
    assert Path(made["report"]).is_file() and made["runs"] == 2 and made["findings"]


def test_a_dry_run_shows_the_runs_and_makes_none(tiny_suite, tmp_path):
    done = zometer("run", tiny_suite(), "--out", tmp_path / "r", "--dry-run", "--only", "*mezo*")
    assert done.returncode == 0
    assert done.stdout.startswith("to run        main--mezo--opt-tiny")
    assert len(done.stdout.splitlines()) == 1 and not (tmp_path / "r").exists()


def test_everything_there_is_can_be_listed():
    found = json.loads(zometer("list", "--json").stdout)
    assert {"suites", "methods", "models", "tasks", "tunings"} == set(found)
    assert {"zero_shot", "mezo", "ft_sgd", "ft_adamw"} <= set(found["methods"])
    assert "quickstart" in found["suites"] and "opt-66b" in found["models"]
    assert "mr" in zometer("list", "tasks").stdout
    assert {"full", "lora", "prefix"} <= set(found["tunings"])


def test_the_doctor_says_what_is_exact_and_why_not():
    plain = zometer("doctor")
    assert plain.returncode == 0 and "NVML" in plain.stdout
    found = json.loads(zometer("doctor", "--json").stdout)
    states = {f["what"]: f for f in found["findings"]}
    assert all(f["detail"] for f in found["findings"])
    if sys.platform == "linux":
        assert states["Peak resident set of the process (VmHWM)"]["state"] == "exact"
    assert found["environment"]["cpu_cores"] >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "quickstrt"], "Unknown suite 'quickstrt'. Did you mean 'quickstart'?"),
        (["run", "none.toml"], "No suite file none.toml"),
        (["run", "quickstart", "--only", "nothing*"], "matches none"),
        (["report", "nowhere"], "No results folder nowhere"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_code_two(arguments, message, tmp_path):
    done = zometer(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("zometer: ")


def test_a_failed_run_gives_exit_code_four_after_the_summary(tiny_suite, tmp_path):
    path = tiny_suite()
    text = path.read_text().replace("lr = 1e-3", "lr = 1e30")
    path.write_text(text.replace("steps = 3", "steps = 50"))
    done = zometer("run", path, "--out", tmp_path / "r", "--only", "*mezo*")
    assert done.returncode == 4, done.stderr
    assert "lower lr" in done.stderr and "Results:" in done.stdout


def test_a_second_invocation_on_the_same_results_is_refused(tiny_suite, tmp_path):
    from bench import store

    with store.opened(tmp_path / "r"):
        done = zometer("run", tiny_suite(), "--out", tmp_path / "r")
    assert done.returncode == 3 and "Another zometer" in done.stderr


def test_a_folder_that_cannot_be_written_to(tiny_suite, tmp_path):
    (tmp_path / "file").write_text("")
    done = zometer("run", tiny_suite(), "--out", tmp_path / "file" / "r")
    assert done.returncode == 3 and "Can't write to" in done.stderr


def test_too_little_disk_is_refused_before_anything_runs(tmp_path, monkeypatch):
    import shutil

    from bench import store
    from bench.records import UserError

    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UserError, match="bytes are free") as caught:
        store.check_space(tmp_path)
    assert caught.value.exit_code == 3


def test_an_interrupt_keeps_what_is_finished_and_the_next_run_resumes(tiny_suite, tmp_path):
    path, out = tiny_suite(), tmp_path / "results"
    text = path.read_text()
    path.write_text(text.replace('["mezo", "ft_sgd"]', '["zero_shot", "mezo"]'))
    path.write_text(path.read_text() + '[[include]]\nmethod = "mezo"\nsteps = 1_000_000\n')
    process = subprocess.Popen(
        [sys.executable, "-m", "bench", "run", str(path), "--out", str(out)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    _until(lambda: list(out.rglob("*mezo*/events.jsonl")))
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "1 of 2 runs are finished and kept" in errors and "Traceback" not in errors
    assert len(list(out.rglob("record.json"))) == 1

    plan = zometer("run", path, "--out", out, "--dry-run")
    assert [line.split()[0] for line in plan.stdout.splitlines()] == ["completed", "to"]


def _until(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
