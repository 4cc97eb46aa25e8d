"""Marks become times: at once on the host, on the right stream of a device."""

from __future__ import annotations

import pytest
import torch

from bench.stopwatch import DeviceEvents, HostClock, PhaseTimes, stopwatch


class Event:
    """An event whose stream says when it was passed, in ms."""

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self, stream: list[float]) -> None:
        self.at = stream[-1]

    def elapsed_time(self, end: Event) -> float:
        assert end.at - self.at < 2**24, "a float32 of milliseconds loses microseconds here"
        return end.at - self.at


def test_on_the_cpu_a_mark_is_a_time_at_once():
    watch = stopwatch("cpu")
    assert isinstance(watch, HostClock) and not watch.deferred
    first, second = watch.mark(), watch.mark()
    assert watch.nanoseconds(first) <= watch.nanoseconds(second)


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_an_event_is_put_on_the_stream_of_the_runs_device_which_need_not_be_the_current_one(
    kind, monkeypatch
):
    streams = {f"{kind}:0": [0.0], f"{kind}:1": [0.0]}
    vendor = getattr(torch, kind)
    monkeypatch.setattr(vendor, "Event", Event)
    monkeypatch.setattr(vendor, "current_stream", lambda device: streams[str(device)])
    watch = stopwatch(f"{kind}:1")
    assert watch.deferred and kind in watch.source
    watch.anchor()
    begin = watch.mark()
    streams[f"{kind}:1"].append(1500.0)
    streams[f"{kind}:0"].append(9000.0)
    end = watch.mark()
    assert watch.nanoseconds(end) - watch.nanoseconds(begin) == 1_500_000_000


def test_clocks_are_tied_anew_so_that_long_runs_stay_exact():
    stream, clock = [0.0], iter(range(0, 10**18, 10**13))
    watch = DeviceEvents(lambda: Event(True), lambda e: e.record(stream), "s", clock.__next__)
    for tie in range(3):
        watch.anchor()
        stream.append(stream[-1] + 250.0)
        assert watch.nanoseconds(watch.mark()) == tie * 10**13 + 250_000_000
        stream.append(stream[-1] + 1e7)


def test_events_are_used_again():
    made = []
    stream = [0.0]

    def new() -> Event:
        made.append(Event(True))
        return made[-1]

    watch = DeviceEvents(new, lambda e: e.record(stream), "s", lambda: 0)
    for _ in range(5):
        watch.anchor()
        for mark in [watch.mark(), watch.mark()]:
            watch.nanoseconds(mark)
    assert len(made) <= 4


def test_a_phase_inside_itself_is_counted_once_in_own_seconds():
    times = PhaseTimes()
    assert times.enter("a", 0) == ("a", 0)
    assert times.enter("a", 10**9) == ("a", 1)
    assert times.leave(3 * 10**9) == ("a", 0)
    assert times.leave(4 * 10**9) == ("end", -1)
    assert times.own_seconds() == {"a": 4.0} and times.seconds() == {"a": 6.0}
