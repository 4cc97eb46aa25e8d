"""``zometer calibrate-model`` and the files that fit and capacity take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from bench.cli import app
from bench.predict import calibration, timed
from bench.predict.calibration import Band
from bench.predict.gpus import GIB, find, of_device
from bench.predict.predict import predict
from bench.predict.roofline import Efficiency, seconds, step
from bench.records import METRICS, RunRecord, RunSpec, UserError, read_record, write_record
from bench.records.record import Environment, Failure, Measurement, Steps

MIB = 1 << 20
MESSAGE = (
    "CUDA out of memory. Process 82243 has 14.67 GiB memory in use. Of the allocated memory 14.00 "
    "GiB is allocated by PyTorch, and 70.08 MiB is reserved by PyTorch but unallocated."
)
FIT = (
    "fit", "--model", "opt-tiny", "--method", "mezo", "--batch", "2", "--seq", "16", "--json",
)  # fmt: skip

ENVIRONMENT = Environment(
    zometer="0.1.0", commit="0", dirty=False, python="3.11", packages={}, platform="Linux",
    cpu="a test's", cpu_cores=2, threads=2, memory_total_bytes=GIB, devices=[],
    noise_kernel="triton", variables={},
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


A100 = "NVIDIA A100-SXM4-80GB"
REACHED = Efficiency((0.5, 0.4, 0.3), (0.8, 0.7, 0.6))


def timed_run(folder: Path, *devices: str, share: float = 1.0, **changes: Any) -> RunSpec:
    """Write a time run whose steps took what they take at ``REACHED``, by its own prediction."""
    spec = RunSpec(
        method="mezo", model="opt-1.3b", task="random_tokens", steps=6, warmup_steps=2, lr=1e-6,
        dtype="float32", batch_size=16, seq_len=512, measure="time",
        **{"device": "cuda:1", **changes},
    )  # fmt: skip
    work = predict(spec).work
    took = {p: seconds(w, find("a100-80gb"), REACHED).expected / 2 for p, w in work.items()}
    inner = {p: t * share for p, t in took.items() if p not in ("run", "load", "evaluate")}
    step = sum(inner.values())
    found = [
        Measurement(
            metric="phase_self_seconds", phase=phase, value=one * 7, unit="s", quality="exact",
            source="test",
        )
        for phase, one in {**inner, "load": 50.0, "run": 3.0}.items()
    ]  # fmt: skip
    record = RunRecord(
        key=spec.key, suite="s", group_title="Main", spec=spec, started_at="2026-11-22T10:00:00Z",
        wall_seconds=1.0, status="completed", reason="all steps were taken", measurements=found,
        steps=Steps(seconds=[9 * step, 3 * step, *[step] * 4]), definitions=METRICS,
        environment=ENVIRONMENT.model_copy(update={"devices": list(devices)}),
    )  # fmt: skip
    (folder / spec.key).mkdir(parents=True)
    write_record(folder / spec.key, record)
    return spec


@pytest.fixture(scope="module")
def _kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def test_speeds_are_those_of_time_runs_and_fit_and_capacity_use_them(
    tmp_path: Path, _kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(_kept))
    spec = timed_run(tmp_path / "results", "Tesla T4", A100)
    timed_run(tmp_path / "results", "Tesla T4", "Odd card", seed=1)
    timed_run(tmp_path / "results", A100, device="cpu", seed=2)
    mine = tmp_path / "mine.toml"
    done = zometer("calibrate-model", tmp_path / "results", "--out", mine)
    assert done.exit_code == 0, done.output
    assert "Odd card: not among the known GPUs" in done.output
    assert "a100-80gb, float32: 40% of its arithmetic, 70% of its bandwidth" in done.output
    found = calibration.read(mine)
    assert list(found.efficiencies) == [("a100-80gb", "float32")]
    reached = found.efficiencies["a100-80gb", "float32"]
    assert (reached.mfu[1], reached.mbu[1]) == pytest.approx((0.4, 0.7), rel=0.01)
    assert reached.source == "1 timed run on NVIDIA A100 80GB"
    assert found.context == calibration.read().context  # no run told of it
    plain = predict(spec)
    own = plain.calibrated(found)
    card, other = find("a100-80gb"), find("h100-80gb")
    expected = step_(plain.work, card, REACHED) / 2
    assert own.cost(card, steps=1).step.expected == pytest.approx(expected, rel=0.01)
    assert plain.cost(card, steps=1).step.expected != pytest.approx(expected, rel=0.05)
    assert own.cost(other, steps=1).step == plain.cost(other, steps=1).step
    grid = (
        "capacity", "--models", "opt-1.3b", "--methods", "mezo", "--dtype", "fp32", "--batch", 16,
        "--seq", 512, "--json", "--devices", "a100",
    )  # fmt: skip
    plans = [
        json.loads(zometer(*grid, *more).output)["plan"] for more in ((), ("--calibration", mine))
    ]
    told = [plan["cost"]["step"]["expected"] for plan in plans]
    assert told[1] == pytest.approx(expected, rel=0.01) and told[0] != told[1]


def step_(work: Any, card: Any, efficiency: Efficiency) -> float:
    inner = {p: w for p, w in work.items() if p not in ("run", "load", "evaluate")}
    return step(inner, card, efficiency).expected


@pytest.mark.parametrize(
    "changes", [{"status": "failed"}, {"steps": Steps()}, {"measurements": []}]
)
def test_a_run_that_does_not_tell_its_times_is_no_measure_of_speed(
    tmp_path: Path, _kept: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(_kept))
    spec = timed_run(tmp_path, A100)
    record = read_record(tmp_path / spec.key / "record.json")
    assert set(timed.seconds_of(record)) >= {"forward", "perturb", "update"}
    assert timed.seconds_of(record.model_copy(update=changes)) == {}


@pytest.mark.parametrize("wrong", ["[0.4, 0.5, 0.6]", "[1.5, 0.5, 0.4]", "[0.5, 0.4]"])
def test_shares_that_can_not_be_are_refused(tmp_path: Path, wrong: str) -> None:
    mine = tmp_path / "mine.toml"
    calibration.write(
        replace(calibration.read(), efficiencies={("mine", "float16"): REACHED}), mine
    )
    assert calibration.read(mine).efficiencies == {("mine", "float16"): REACHED}
    mine.write_text(mine.read_text().replace("[0.5, 0.4, 0.3]", wrong))
    with pytest.raises(UserError, match="Expected a calibration file"):
        calibration.read(mine)


@pytest.mark.parametrize(
    ("driver", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"), ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H200", "h200"), ("NVIDIA L4", "l4"), ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Tesla V100-SXM2-16GB", "v100-16gb"), ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA RTX A6000", None),
    ],
)  # fmt: skip
def test_a_driver_s_name_finds_its_card(driver: str, name: str | None) -> None:
    found = of_device(driver)
    assert (found.name if found else None) == name


def test_predict_takes_the_calibrated_context(
    tmp_path: Path, cuda_suite: Path, _kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(_kept))
    mine = tmp_path / "mine.toml"
    calibration.write(calibration.refitted(calibration.read(), [4 * GIB], "a test"), mine)
    found = []
    for more in ((), ("--calibration", mine)):
        done = zometer("predict", cuda_suite, "--out", tmp_path / "results", "--json", *more)
        assert done.exit_code == 0, done.output
        needs = json.loads(done.output)["figures"]["figures"]["default"][0]
        found.append(needs["process"]["expected"] - needs["reserved"])
        record = read_record(Path(json.loads(done.output)["prediction"]))
        told = {m.metric: m.value for m in record.predicted if m.phase == "run"}
        assert told["predicted_process_expected_bytes"] == needs["process"]["expected"]
    assert found == [calibration.read().context.expected, 4 * GIB]
