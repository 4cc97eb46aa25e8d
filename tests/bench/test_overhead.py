"""What measuring costs: what is watched how, in which order, and what is derived of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.built import build
from bench.cell import read_events
from bench.cli import monitor
from bench.overhead import borders, rounds, watching
from bench.overhead.watching import Helper, Step, Watched, Written
from bench.records.monitor_cost import MonitorCase, MonitorSample, WatchCost
from bench.records.step_speed import StepCase
from bench.stepping import cases
from bench.stepping.clock import Took
from bench.stepping.contenders import Bench

ROOT = Path(__file__).parents[2]


def tiny(count: int = 2) -> MonitorCase:
    step = StepCase(
        model="opt-tiny",
        dtype="float32",
        batch_size=2,
        seq_len=8,
        methods=["mezo"],
        rounds=count,
        threads=1,
        textbook_rounds=0,
    )
    return MonitorCase(step=step, steps=2, interval_seconds=0.05)


@pytest.fixture
def step() -> Step:
    spec = cases.spec(tiny().step)
    return Step(Bench.of(spec, build(spec)), "mezo")


@pytest.mark.parametrize("watch", ["time", "memory"])
def test_a_watched_step_opens_the_phases_of_a_run_and_writes_them_down(step, watch, monkeypatch):
    folders: list[Path] = []
    events: list[dict[str, Any]] = []

    @contextmanager
    def sampler(folder: Path, device: str, seconds: float) -> Iterator[None]:
        folders.append(folder)
        yield
        events.extend(read_events(folder))  # before the folder is gone

    monkeypatch.setattr(watching, "_sampler", sampler)
    with watching.watching(step, watch, "cpu", 0.05, Helper()) as watched:
        assert isinstance(watched, Watched)
        watched.take()
    names = [e["name"] for e in events if e["event"] == "phase"]
    assert names[:3] == ["run", "train", "perturb"] and names[-1] == "end"
    assert {"forward", "update"} <= set(names)
    assert sum(e["event"] == "step" for e in events) == 1
    assert not folders[0].exists()


def test_the_phases_of_a_step_are_counted_and_one_is_timed_by_itself(step, monkeypatch):
    # train; perturb, forward, perturb, forward, and the update with the last move back
    assert borders.phases(step, "cpu") == 6
    assert 0 < borders.seconds("cpu") < 0.1
    write = Written.write

    def slowly(self: Written, event: str, body: dict[str, object]) -> None:
        time.sleep(0.002)
        write(self, event, body)

    monkeypatch.setattr(Written, "write", slowly)
    monkeypatch.setattr(borders, "_BATCHES", 3)
    assert borders.seconds("cpu") > 0.004  # a phase has two borders


def test_a_step_that_nothing_watches_starts_no_helper_and_no_monitor(step, monkeypatch):
    def never(*_: object) -> None:
        raise AssertionError("it is watched")

    monkeypatch.setattr(watching, "_sampler", never)
    monkeypatch.setattr(watching, "monitor_of", never)
    with watching.watching(step, "nothing", "cpu", 0.05, Helper()) as taken:
        assert taken is step
        assert taken.take() > 0


def test_the_sampler_runs_beside_a_watched_step_and_says_what_it_took(step):
    helper = Helper()
    with watching.watching(step, "time", "cpu", 0.01, helper) as watched:
        for _ in range(20):
            watched.take()
    assert helper.cpu_seconds > 0.01  # a process came up and ended
    if sys.platform == "linux":
        assert helper.share is None or 0 <= helper.share < 1


def test_a_memory_run_reads_meters_that_a_time_run_does_not():
    memory, timing = watching.meters("memory", "cpu"), watching.meters("time", "cpu")
    assert set(timing) <= set(memory)


def test_each_sample_stands_between_steps_alone_and_odd_rounds_run_backwards(step, monkeypatch):
    notes: list[str] = []
    clock = iter(float(n) for n in range(1, 100))

    def one(step: Step, case: MonitorCase, watch: str) -> tuple[Took, Helper]:
        notes.append(watch)
        helper = Helper()
        helper.share = 0.01
        seconds = next(clock)
        return Took(seconds, 2 * seconds), helper

    monkeypatch.setattr(rounds, "_one", one)
    seen = rounds.run(step, tiny(), lambda words: None)
    alone = "nothing"
    assert notes == [
        *rounds.WATCHES,
        *(alone, "nothing", alone, "time", alone, "memory", alone),
        *(alone, "memory", alone, "time", alone, "nothing", alone),
    ]
    first = seen.samples["time"][0]  # the warm-up took 1, 2, 3; the round began at 4
    assert (first.seconds, first.alone_seconds) == (7.0, 7.0)
    assert (first.cpu_seconds, first.alone_cpu_seconds) == (14.0, 14.0)
    assert [s.round for s in seen.samples["memory"]] == [0, 1]
    assert seen.shares == [0.01, 0.01]


def test_as_many_steps_are_taken_as_a_sample_has():
    class Counted:
        taken = 0

        def take(self) -> None:
            self.taken += 1

    counted = Counted()
    rounds._several(counted, 5)  # type: ignore[arg-type]
    assert counted.taken == 5


def test_ratios_are_formed_round_by_round():
    samples = [
        MonitorSample(round=i, seconds=s, cpu_seconds=3.0, alone_seconds=2.0,
                      alone_cpu_seconds=4.0)
        for i, s in enumerate((3.0, 2.0))
    ]  # fmt: skip
    cost = WatchCost(watch="time", samples=samples)
    assert cost.ratios() == [1.5, 1.0] and cost.ratios("cpu") == [0.75, 0.75]


def test_another_setting_is_another_record_on_disk():
    assert tiny().key == tiny().key != tiny(3).key
    assert tiny().key.startswith("monitor--opt-tiny--float32--2x8--")


def test_the_command_prints_ratios_and_leaves_a_record(tmp_path: Path):
    out = tmp_path / "out"
    arguments = ["--model", "opt-tiny", "--shape", "2x8", "--rounds", 1, "--steps", 1,
                 "--threads", 1, "--json", "--out", out]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "bench", "bench", "monitor", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    (path,) = out.rglob("monitor_cost.json")
    record = monitor.MonitorCost.model_validate_json(path.read_text())
    assert path.parent.name == record.key == told["key"]
    assert [one.watch for one in record.watched] == ["nothing", "time", "memory"]
    sample = record.cost("time").samples[0]
    ratio = told["summary"]["watched"]["time"]["ratio"]["median"]
    assert ratio == sample.seconds / sample.alone_seconds
    assert "host_memory" in record.trackers or sys.platform != "linux"
    assert record.environment.threads == 1
    monitor.show(record, out)


def test_a_table_names_the_control_and_says_what_the_sampler_takes(tmp_path, capsys):
    case = tiny(1)
    samples = [MonitorSample(round=0, seconds=2.02, cpu_seconds=2.0, alone_seconds=2.0,
                             alone_cpu_seconds=2.0)]  # fmt: skip
    watched = [WatchCost(watch=w, samples=samples) for w in rounds.WATCHES]
    record = monitor.MonitorCost.model_construct(
        key="k", case=case, load_average=[0.1, 0.2], watched=watched, trackers=["host_memory"],
        sampler_cpu_share=0.0042, phases_per_step=5, phase_cost_seconds=2e-4,
    )  # fmt: skip
    monitor.show(record, tmp_path)
    said = capsys.readouterr().out
    assert "nothing (control)" in said and "1.0100" in said and "0.42 % of one core" in said
    assert "5 phases a step, of 200 us each: 0.100 % of it" in said
    assert monitor.summary(record)["step_seconds"] == 1.0
    assert monitor.summary(record)["time_share"] == pytest.approx(1e-3)


def test_a_mistake_is_one_line_and_exit_code_two(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "bench", "bench", "monitor", "--model", "opt-tinny"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 2 and "Did you mean 'opt-tiny'?" in done.stderr
    assert "Traceback" not in done.stderr
