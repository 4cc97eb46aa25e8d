"""GPU-hours and CPU-hours: known seconds on known hardware."""

from __future__ import annotations

import pytest

from bench.hours import Course, hours
from bench.records import METRICS, Environment, Evaluation, Measurement, RunSpec

H100 = "NVIDIA H100 80GB HBM3"


def environment(**changes) -> Environment:
    fields = {
        "zometer": "1", "commit": None, "dirty": None, "python": "3", "packages": {},
        "platform": "Linux", "cpu": "EPYC", "cpu_cores": 8, "threads": 4,
        "memory_total_bytes": 1, "devices": [H100, H100], "noise_kernel": "k", "variables": {},
    }  # fmt: skip
    return Environment(**{**fields, **changes})


def evaluation(step: int, correct: int, seconds: float) -> Evaluation:
    return Evaluation(
        step=step, forward_passes=0, backward_passes=0, train_seconds=seconds,
        n=100, correct=correct, loss=1.0, predictions=[],
    )  # fmt: skip


def share(value: float | None, device: str) -> Measurement:
    missing = {"quality": "unavailable", "reason": "no sensor"} if value is None else {}
    fields = {"quality": "sampled", "source": "nvml", **missing}
    return Measurement(
        metric="gpu_busy_share", phase="run", value=value, unit="1", device=device, **fields
    )


EVALUATIONS = [evaluation(0, 50, 0.0), evaluation(1, 80, 600.0), evaluation(3, 70, 2400)]
SHARES = [share(0.5, "GPU-a"), share(0.0, "GPU-b")]


def told(spec=None, evaluations=EVALUATIONS, shares=SHARES, **changes) -> list[Measurement]:
    fields = {"method": "mezo", "model": "m", "task": "t", "steps": 3, "device": "cuda"}
    given = {
        "spec": RunSpec(**{**fields, **(spec or {})}),
        "environment": environment(),
        "wall_seconds": 7200.0,
        "run_seconds": 3600.0,
        "step_seconds": [600.0, 600.0, 1200.0],
        "cpu_seconds": 1800.0,
    }
    return hours(Course(**{**given, **changes}), evaluations, shares)


def by_name(found) -> dict[str, Measurement]:
    assert {m.unit for m in found} <= {"h"}
    assert all(METRICS[m.metric].unit == "h" for m in found)
    return {m.metric.split("_hours_")[1]: m for m in found}


def test_a_run_holds_every_gpu_it_can_see_and_names_it():
    found = by_name(told({"target_accuracy": 0.75}))
    assert {m.metric.split("_")[0] for m in found.values()} == {"gpu"}
    values = {name: m.value for name, m in found.items()}
    assert values == pytest.approx(
        {"reserved": 4.0, "train": 4 / 3, "to_target": 1 / 3, "busy": 0.5}
    )
    assert all(f"2 {H100}" in m.source for m in found.values())
    assert {name: m.quality for name, m in found.items()} == {
        "reserved": "exact", "train": "exact", "to_target": "exact", "busy": "sampled"
    }  # fmt: skip
    assert "step 1" in found["to_target"].source


def test_gpus_of_two_models_are_both_named():
    two = told(environment=environment(devices=[H100, "A100", H100]))
    assert f"2 {H100} + 1 A100" in by_name(two)["train"].source


def test_without_a_gpu_the_cores_are_counted_that_the_run_was_given():
    found = by_name(told({"device": "cpu"}, shares=[]))
    assert {m.metric.split("_")[0] for m in found.values()} == {"cpu"}
    assert found["reserved"].value == 8.0 and found["train"].value == pytest.approx(8 / 3)
    assert found["busy"].value == 0.5 and found["busy"].quality == "exact"
    assert all("4 cores of EPYC" in m.source for m in found.values() if m.value is not None)


@pytest.mark.parametrize(
    ("target", "evaluations", "reason"),
    [
        (None, None, "set target_accuracy"),
        (0.9, None, "not reached: no evaluation came to 0.9; the best of 3 is 0.8"),
        (0.9, [], "there is none"),
    ],
)
def test_a_target_that_was_not_reached_has_a_reason_and_no_number(target, evaluations, reason):
    changes = {} if evaluations is None else {"evaluations": evaluations}
    found = by_name(told({"target_accuracy": target}, **changes))["to_target"]
    assert found.value is None and found.quality == "unavailable" and reason in found.reason


def test_a_target_that_the_model_reaches_untrained_costs_nothing():
    found = by_name(told({"target_accuracy": 0.5}))["to_target"]
    assert found.value == 0.0 and found.quality == "exact"


def test_what_a_resumed_run_took_in_all_is_not_known_but_its_steps_are():
    found = by_name(told(resumed=True))
    for name in ("reserved", "busy"):
        assert found[name].value is None and "resumed" in found[name].reason
    assert found["train"].value == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("shares", "reason"), [([], "not sampled"), ([(0.5, "a"), (None, "b")], "no sensor")]
)
def test_busy_hours_need_every_device(shares, reason):
    found = by_name(told(shares=[share(*s) for s in shares]))["busy"]
    assert found.value is None and reason in found.reason


def test_a_run_that_died_on_the_cpu_has_no_busy_hours():
    found = by_name(told({"device": "cpu"}, cpu_seconds=None))["busy"]
    assert found.value is None and "died" in found.reason


def test_there_are_no_hours_of_a_memory_run_or_of_a_device_that_is_not_there():
    assert told({"measure": "memory"}) == []
    assert told(environment=environment(devices=[])) == []
    assert told() != []
