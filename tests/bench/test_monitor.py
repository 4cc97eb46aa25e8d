"""Phases: nested, repeated, and folded without losing a peak."""

from __future__ import annotations

import time

import pytest

from bench.monitor import Monitor
from bench.trackers import Reading


class Gauge:
    """A tracker whose memory the test moves by hand."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.resets = 0

    def use(self, value: int) -> None:
        self.now = value
        self.peak = max(self.peak, value)

    def settle(self) -> None: ...

    def reset(self) -> None:
        self.peak = self.now
        self.resets += 1

    def read(self) -> list[Reading]:
        return [Reading("host_peak_bytes", self.peak, "exact", "gauge")]

    def baseline(self) -> list[Reading]:
        return [Reading("host_baseline_bytes", self.now, "exact", "gauge")]


def peaks(monitor: Monitor) -> dict[str, float | None]:
    return {m.phase: m.value for m in monitor.measurements() if m.metric == "host_peak_bytes"}


def test_a_phase_has_its_own_peak_and_its_parent_the_largest():
    gauge = Gauge()
    monitor = Monitor("memory", {"g": gauge})
    with monitor.phase("run"):
        with monitor.phase("load"):
            gauge.use(10)
        with monitor.phase("train"):
            for peak in (30, 25):
                with monitor.phase("forward"):
                    gauge.use(peak)
                    gauge.use(10)
            with monitor.phase("update"):
                gauge.use(12)
        gauge.use(5)
    assert peaks(monitor) == {"run": 30, "load": 10, "train": 30, "forward": 30, "update": 12}


def test_a_spike_between_phases_belongs_to_the_parent_alone():
    gauge = Gauge()
    monitor = Monitor("memory", {"g": gauge})
    with monitor.phase("run"):
        gauge.use(90)
        gauge.use(1)
        with monitor.phase("load"):
            gauge.use(2)
    assert peaks(monitor) == {"run": 90, "load": 2}


def test_a_time_run_is_left_alone_inside():
    gauge = Gauge()
    monitor = Monitor("time", {"g": gauge})
    with monitor.phase("run"):
        resets = gauge.resets
        with monitor.phase("train"):
            gauge.use(40)
            gauge.use(0)
            time.sleep(0.05)
        assert gauge.resets == resets
    assert peaks(monitor) == {"run": 40}
    seconds = {m.phase: m.value for m in monitor.measurements() if m.metric == "phase_seconds"}
    assert 0.05 <= seconds["train"] < 5 and seconds["run"] >= seconds["train"]


def test_a_memory_run_reports_no_time():
    monitor = Monitor("memory", {"g": Gauge()})
    with monitor.phase("run"):
        pass
    assert not [m for m in monitor.measurements() if m.metric == "phase_seconds"]


def test_the_innermost_phase_of_a_failure_is_remembered():
    failures = []
    monitor = Monitor("memory", {"g": Gauge()}, on_failure=lambda: failures.append(1))
    with pytest.raises(RuntimeError), monitor.phase("run"), monitor.phase("update"):
        raise RuntimeError
    assert monitor.failed_phase == "update" and failures == [1]
    assert set(peaks(monitor)) == {"run", "update"}


def test_a_device_that_fails_in_its_turn_does_not_hide_the_first_error():
    def broken():
        raise RuntimeError("device lost")

    monitor = Monitor("memory", {"g": Gauge()}, synchronize=broken)
    with pytest.raises(MemoryError), monitor.phase("run"), monitor.phase("train"):
        raise MemoryError
    assert monitor.failed_phase == "train"


def test_the_innermost_phase_is_told_at_both_ends():
    told = []
    monitor = Monitor("time", {}, on_phase=told.append)
    with monitor.phase("run"), monitor.phase("train"):
        with monitor.phase("update"):
            pass
    assert told == ["run", "train", "update", "train", "run"]


def test_what_cannot_be_measured_is_said_never_zero():
    monitor = Monitor("memory", {}, {"host_peak_bytes": "not Linux"})
    (missing,) = monitor.measurements()
    assert (missing.value, missing.quality, missing.reason) == (None, "unavailable", "not Linux")
