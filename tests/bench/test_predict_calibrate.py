"""``zometer calibrate-model`` and the files that fit and capacity take."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bench.cli import app
from bench.predict import calibration
from bench.predict.calibration import Band
from bench.predict.gpus import GIB
from bench.records import METRICS, RunRecord, RunSpec, UserError, write_record
from bench.records.record import Failure, Measurement

MIB = 1 << 20
MESSAGE = (
    "CUDA out of memory. Process 82243 has 14.67 GiB memory in use. Of the allocated memory 14.00 "
    "GiB is allocated by PyTorch, and 70.08 MiB is reserved by PyTorch but unallocated."
)
FIT = (
    "fit", "--model", "opt-tiny", "--method", "mezo", "--batch", "2", "--seq", "16", "--json",
)  # fmt: skip


def zometer(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def run(folder: Path, seed: int, beside: int | None, **changes: Any) -> None:
    """Write the record of a run whose process held so many bytes beside torch's."""
    spec = RunSpec(
        method="mezo", model="opt-tiny", task="random_tokens", steps=1, seed=seed,
        device=changes.pop("device", "cuda"),
    )  # fmt: skip
    peaks = {} if beside is None else {"reserved": 5 * GIB, "process": 5 * GIB + beside}
    found = [
        Measurement(
            metric=f"device_{name}_peak_bytes", phase="run", value=value, unit="B",
            quality="exact", source="test",
        )
        for name, value in peaks.items()
    ]  # fmt: skip
    record = RunRecord(
        key=spec.key, suite="s", group_title="Main", spec=spec, started_at="2026-11-22T10:00:00Z",
        wall_seconds=1.0, measurements=found, definitions=METRICS,
        **{"status": "completed", "reason": "all steps were taken", **changes},
    )  # fmt: skip
    (folder / spec.key).mkdir(parents=True)
    write_record(folder / spec.key, record)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two measured runs, one out of memory, and two that tell nothing."""
    folder = tmp_path / "results"
    run(folder, 1, 300 * MIB)
    run(folder, 2, 500 * MIB)
    failure = Failure(cause="OutOfMemoryError", phase="train", log_tail=MESSAGE)
    run(folder, 3, None, status="out_of_memory", reason="out of memory", failure=failure)
    run(folder, 4, 9 * MIB, device="cpu")
    run(folder, 5, None)
    return folder


def test_the_context_is_that_of_measured_runs_and_of_messages(
    results: Path, tmp_path: Path
) -> None:
    done = zometer("calibrate-model", results, "--out", tmp_path / "mine.toml")
    assert done.exit_code == 0, done.output
    found = calibration.read(tmp_path / "mine.toml")
    told = calibration.context_in(MESSAGE)
    assert told > 600 * MIB
    assert found.context == Band(300 * MIB, 500 * MIB, told)
    assert found.verified["context"] and found.sources["context"].startswith("3 runs")
    assert found.nccl == calibration.read().nccl


def test_without_a_measured_run_it_says_what_is_missing(tmp_path: Path) -> None:
    run(tmp_path / "results", 1, None)
    done = zometer("calibrate-model", tmp_path / "results", "--out", tmp_path / "mine.toml")
    assert isinstance(done.exception, UserError)
    assert "Expected runs on CUDA with device_process_peak_bytes" in str(done.exception)
    assert not (tmp_path / "mine.toml").exists()
    none = zometer("calibrate-model", tmp_path / "none", "--out", tmp_path / "mine.toml")
    assert isinstance(none.exception, UserError) and "There is no" in str(none.exception)


GPUS = """
[mine]
title = "My card"
architecture = "ampere"
usable_gib = 3
tflops = { float32 = 10.0 }
bandwidth_gbs = 500
"""


def test_fit_and_capacity_take_a_calibration_and_gpus_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "gpus.toml").write_text(GPUS)
    mine = tmp_path / "mine.toml"
    four = calibration.refitted(calibration.read(), [4 * GIB], "a test")
    calibration.write(four, mine)
    own = ("--device", "mine", "--gpus", tmp_path / "gpus.toml")
    plain, heavy = zometer(*FIT, *own), zometer(*FIT, *own, "--calibration", mine)
    assert plain.exit_code == heavy.exit_code == 0, heavy.output
    answers = [json.loads(done.output)["fits"][0]["answer"] for done in (plain, heavy)]
    assert answers == ["yes", "no"]
    grid = (
        "capacity", "--models", "opt-tiny", "--methods", "mezo", "--dtype", "fp16", "--batch", 2,
        "--seq", 16, "--full", "--json", "--devices", "mine", "--gpus", tmp_path / "gpus.toml",
    )  # fmt: skip
    told = [zometer(*grid, *more).output for more in ((), ("--calibration", mine))]
    plans = [json.loads(output)["plan"] for output in told]
    assert plans[0]["gpu"] == "mine" and plans[1] is None
    text = mine.read_text().replace("hopper = 33554432", "hopper = 1")
    mine.write_text(text)
    refused = zometer(*FIT, *own, "--calibration", mine)
    assert isinstance(refused.exception, UserError) and "[workspace]" in str(refused.exception)
