"""Phases: nested, repeated, and folded without losing a peak."""

from __future__ import annotations

import time

import pytest

from bench.monitor import Monitor
from bench.stopwatch import DeviceEvents, HostClock
from bench.trackers import Reading


class Gauge:
    """A tracker whose memory the test moves by hand."""

    def __init__(self) -> None:
        self.now = self.peak = 0
        self.resets = self.settled = 0

    def use(self, value: int) -> None:
        self.now = value
        self.peak = max(self.peak, value)

    def settle(self) -> None:
        self.settled += 1

    def reset(self) -> None:
        self.peak = self.now
        self.resets += 1

    def read(self) -> list[Reading]:
        return [Reading("host_peak_bytes", self.peak, "exact", "gauge")]

    def baseline(self) -> list[Reading]:
        return [Reading("host_baseline_bytes", self.now, "exact", "gauge")]

    def totals(self) -> list[Reading]:
        return [Reading("device_ooms", self.resets, "exact", "gauge")]


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


def test_the_innermost_phase_is_told_at_every_border_with_its_depth_and_time():
    told, clock = [], iter(range(100, 200, 10))
    monitor = Monitor("time", {}, on_phase=lambda *now: told.append(now), clock=clock.__next__)
    with monitor.phase("run"), monitor.phase("train"):
        with monitor.phase("update"):
            pass
    assert told[0] == ("run", 0, 100) and told[-1] == ("end", -1, told[-2][2] + 10)
    assert [(name, depth) for name, depth, _ in told] == [
        ("run", 0), ("train", 1), ("update", 2), ("train", 1), ("run", 0), ("end", -1)
    ]  # fmt: skip
    times = [t_ns for *_, t_ns in told]
    assert times == sorted(times)


def test_what_cannot_be_measured_is_said_never_zero():
    monitor = Monitor("memory", {}, {"host_peak_bytes": "not Linux"})
    (missing,) = monitor.measurements()
    assert (missing.value, missing.quality, missing.reason) == (None, "unavailable", "not Linux")


def seconds_of(monitor: Monitor, metric: str) -> dict[str, float | None]:
    return {m.phase: m.value for m in monitor.measurements() if m.metric == metric}


class Clock:
    """A clock that the test moves by hand, in seconds."""

    def __init__(self) -> None:
        self.now = 5.0

    def __call__(self) -> int:
        return round(self.now * 1e9)


def test_own_seconds_leave_out_the_phases_inside_and_add_up_to_the_run():
    clock = Clock()
    monitor = Monitor("time", {}, clock=clock, stopwatch=HostClock(clock))
    with monitor.phase("run"):
        clock.now += 1
        with monitor.phase("load"):
            clock.now += 2
        for _ in range(2):
            with monitor.phase("train"):
                clock.now += 0.5
                with monitor.phase("forward"):
                    clock.now += 4
                    with monitor.phase("perturb"):
                        clock.now += 8
    whole = seconds_of(monitor, "phase_seconds")
    assert whole == {"run": 28, "load": 2, "train": 25, "forward": 24, "perturb": 16}
    own = seconds_of(monitor, "phase_self_seconds")
    assert own == {"run": 1, "load": 2, "train": 1, "forward": 8, "perturb": 16}


class Stream:
    """A device that does its work later: events are passed when it comes to them."""

    def __init__(self, clock: Clock) -> None:
        self.host, self.busy_until, self.waits, self.made = clock, clock.now, 0, 0
        self.lost = False

    def work(self, seconds: float) -> None:
        self.busy_until = max(self.busy_until, self.host.now) + seconds

    def wait(self) -> None:
        if self.lost:
            raise RuntimeError("device lost")
        self.waits += 1
        self.host.now = max(self.busy_until, self.host.now)

    def stopwatch(self) -> DeviceEvents:
        return DeviceEvents(self.event, lambda event: event.record(), "events", self.host)

    def event(self) -> Event:
        self.made += 1
        return Event(self)


class Event:
    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def record(self) -> None:
        self.at = max(self.stream.busy_until, self.stream.host.now)

    def elapsed_time(self, end: Event) -> float:
        assert self.stream.host.now >= end.at, "asked before the device has come there"
        return (end.at - self.at) * 1e3


def test_phases_of_a_device_are_timed_where_it_works_and_nothing_waits_inside_a_step():
    clock = Clock()
    stream, told = Stream(clock), []
    monitor = Monitor("time", {}, synchronize=stream.wait, on_phase=lambda *t: told.append(t),
                      stopwatch=stream.stopwatch(), clock=clock)  # fmt: skip
    with monitor.phase("run"):
        for _ in range(3):
            with monitor.phase("train"):
                waits = stream.waits
                for phase, seconds in (("forward", 3.0), ("update", 1.0)):
                    with monitor.phase(phase):
                        stream.work(seconds)
                        clock.now += 0.001  # the host has handed the work over
                assert stream.waits == waits
    whole = seconds_of(monitor, "phase_seconds")
    assert whole["forward"] == pytest.approx(9, abs=0.01)
    assert whole["update"] == pytest.approx(3, abs=0.01)
    own = seconds_of(monitor, "phase_self_seconds")
    assert sum(own.values()) == pytest.approx(whole["run"]) == pytest.approx(12, abs=0.05)
    assert stream.made < 8, "events are used again"
    times = [t_ns for *_, t_ns in told]
    assert times == sorted(times) and [name for name, *_ in told].count("forward") == 3
    assert [name for name, *_ in told[2:4]] == ["forward", "train"]
    begin, end = times[2:4]
    assert end - begin == pytest.approx(3e9, rel=0.01), "told where the device was"
    sources = {m.phase: m.source for m in monitor.measurements()}
    assert sources["forward"] == "events" and sources["train"] == "time.monotonic_ns"


def test_a_step_that_fails_on_the_device_loses_its_inner_times_and_nothing_else():
    clock = Clock()
    stream = Stream(clock)
    watch = stream.stopwatch()
    monitor = Monitor("time", {}, synchronize=stream.wait, stopwatch=watch, clock=clock)
    with monitor.phase("run"):
        with monitor.phase("train"), monitor.phase("forward"):
            stream.work(2)
        with pytest.raises(MemoryError), monitor.phase("train"), monitor.phase("forward"):
            stream.work(7)
            stream.lost = True
            raise MemoryError
        stream.lost = False
    assert monitor.failed_phase == "forward"
    whole = seconds_of(monitor, "phase_seconds")
    assert whole["forward"] == pytest.approx(2, abs=0.01) and whole["train"] >= 2


def test_a_memory_run_collects_garbage_once_a_border_and_rests_at_main_ones_alone(monkeypatch):
    collected, gauges = [], [Gauge(), Gauge()]
    monkeypatch.setattr("gc.collect", lambda: collected.append(1))
    monitor = Monitor("memory", {"a": gauges[0], "b": gauges[1]})
    for phase, borders in (("load", 2), ("forward", 0)):
        collected.clear()
        before = [g.settled for g in gauges]
        with monitor.phase(phase):
            pass
        assert len(collected) == borders
        assert [g.settled for g in gauges] == [b + borders for b in before]


def test_what_the_phase_before_left_is_given_back_before_a_phase_is_said_to_begin():
    """A sampler that looks between two borders must not see the cache of the phase before."""
    seen = []
    gauge = Gauge()
    monitor = Monitor("memory", {"g": gauge}, on_phase=lambda name, *_: seen.append(name))
    gauge.settle = lambda: seen.append("settle")
    with monitor.phase("load"):
        seen.append("work")
    assert seen == ["settle", "load", "work", "settle", "end"]


def test_a_time_run_never_empties_a_cache_between_its_ends():
    gauge = Gauge()
    monitor = Monitor("time", {"g": gauge})
    settled = gauge.settled
    with monitor.phase("run"), monitor.phase("train"):
        pass
    assert gauge.settled == settled


def test_counters_of_the_run_are_read_at_its_end_and_told_once():
    gauge = Gauge()
    monitor = Monitor("memory", {"g": gauge})
    with monitor.phase("run"):
        for _ in range(3):
            with monitor.phase("train"):
                pass
        resets = gauge.resets
    (total,) = [m for m in monitor.measurements() if m.metric == "device_ooms"]
    assert (total.phase, total.value) == ("run", resets)
