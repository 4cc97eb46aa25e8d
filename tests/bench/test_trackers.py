"""Trackers against known allocations; every file of the folder is held to them."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from bench import trackers
from bench.trackers.host_memory import HostMemory
from bench.trackers.torch_allocator import NoPeaks, TorchAllocator

MIB = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is a Linux counter")
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")


@pytest.mark.parametrize("name", trackers.modules())
def test_a_tracker_measures_defined_metrics(name):
    module = trackers.modules()[name]
    assert module.TITLE and module.METRICS
    for metric, definition in module.METRICS.items():
        assert definition.unit and len(definition.definition) > 20, metric


def peak(tracker: trackers.Tracker, metric: str) -> float:
    return next(r.value for r in tracker.read() if r.metric == metric)


def known_allocation(
    tracker: trackers.Tracker, metric: str, device: str, size: int, tolerance: float
) -> None:
    """A tensor of known size, freed at once, must show; and must be forgotten after a reset."""
    for _ in range(3):
        tracker.reset()
        before = peak(tracker, metric)
        torch.ones(size, dtype=torch.uint8, device=device)
        rise = peak(tracker, metric) - before
        assert abs(rise - size) <= tolerance * size
    tracker.reset()
    assert peak(tracker, metric) - before < size / 4


@linux
@pytest.mark.parametrize("size", [8 * MIB, 64 * MIB])
def test_host_memory_sees_a_known_allocation(size):
    # In a process of its own: what other tests left is freed, and used again, when it likes.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        fresh.submit(host_memory_sees, size).result()


def host_memory_sees(size: int) -> None:
    torch.ones(24 * MIB, dtype=torch.uint8)  # a warm heap, in which plain RSS reads 0 for 8 MiB
    known_allocation(HostMemory(), "host_peak_bytes", "cpu", size, 0.03)


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("metric", ["device_allocated_peak_bytes", "device_requested_peak_bytes"])
def test_torch_allocator_sees_a_known_allocation(metric):
    tracker = trackers.modules()["torch_allocator"].tracker("cuda:0")
    tracker.settle()
    known_allocation(tracker, metric, "cuda:0", 64 * MIB, 0.001)


class Caching:
    """torch's allocator of one device, in small: 512-byte blocks, a cache, peaks, a capacity."""

    name = "fake"

    def __init__(self, capacity: int = 10**9) -> None:
        self.capacity, self.calls = capacity, []
        self.now = dict.fromkeys(("allocated", "reserved", "requested"), 0)
        self.peak = dict(self.now)
        self.retries = self.ooms = 0

    def take(self, size: int) -> None:
        rounded = -(-size // 512) * 512
        grown = max(0, self.now["allocated"] + rounded - self.now["reserved"])
        if self.now["reserved"] + grown > self.capacity:
            self.now["reserved"] = self.now["allocated"]  # the cache is flushed
            self.retries += 1
            grown = rounded
            if self.now["reserved"] + grown > self.capacity:
                self.ooms += 1
                raise torch.OutOfMemoryError
        self._move(allocated=rounded, reserved=grown, requested=size)

    def give(self, size: int) -> None:
        self._move(allocated=-(-(-size // 512) * 512), requested=-size)

    def _move(self, **by: int) -> None:
        for name, change in by.items():
            self.now[name] += change
            self.peak[name] = max(self.peak[name], self.now[name])

    def memory_stats(self) -> dict[str, int]:
        assert self.calls[-1] == "synchronize" or self.calls == []
        stats = {f"{n}_bytes.all.peak": v for n, v in self.peak.items()}
        return stats | {"num_alloc_retries": self.retries, "num_ooms": self.ooms}

    def reset_peak_memory_stats(self) -> None:
        self.calls.append("reset")
        self.peak = dict(self.now)

    def synchronize(self) -> None:
        self.calls.append("synchronize")

    def empty_cache(self) -> None:
        self.calls.append("empty_cache")
        self.now["reserved"] = self.now["allocated"]


def device_peaks(tracker: trackers.Tracker) -> dict[str, float]:
    return {r.metric.split("_")[1]: r.value for r in tracker.read()}


def test_torch_allocator_tells_three_peaks_and_forgets_them_at_a_border():
    torch_ = Caching()
    tracker = TorchAllocator(torch_)
    torch_.take(1000)
    torch_.give(1000)
    torch_.take(100)
    assert device_peaks(tracker) == {"allocated": 1024, "reserved": 1024, "requested": 1000}
    tracker.reset()
    assert device_peaks(tracker)["allocated"] == 512
    assert device_peaks(tracker)["reserved"] == 1024, "a border inside a step leaves the cache"
    tracker.settle()
    tracker.reset()
    assert device_peaks(tracker) == {"allocated": 512, "reserved": 512, "requested": 100}
    assert torch_.calls.count("empty_cache") == 1


def test_torch_allocator_counts_refusals_of_the_whole_run():
    torch_ = Caching(capacity=4096)
    tracker = TorchAllocator(torch_)
    torch_.take(3000)
    torch_.give(3000)
    torch_.take(512)
    torch_.take(3584)
    with pytest.raises(torch.OutOfMemoryError):
        torch_.take(1)
    tracker.read()
    tracker.reset()
    tracker.read()
    totals = {r.metric: r.value for r in tracker.totals()}
    assert totals == {"device_alloc_retries": 1, "device_ooms": 1}


def test_a_statistic_that_this_torch_does_not_keep_is_absent(monkeypatch):
    torch_ = Caching()
    monkeypatch.setattr(torch_, "memory_stats", lambda: {"allocated_bytes.all.peak": 7})
    tracker = TorchAllocator(torch_)
    assert device_peaks(tracker) == {"allocated": 7} and tracker.totals() == []


STATISTICS = {f"{name}_bytes.all.peak": 4096 for name in ("allocated", "reserved", "requested")}


@pytest.mark.parametrize(
    ("accelerator", "expected", "source"),
    [
        (STATISTICS, 4096, "torch.accelerator"),
        ({"allocated_bytes.all.peak": 1}, 5, "torch.accelerator"),  # the vendor's has the rest
        (None, 5, "torch.cuda"),  # torch before 2.9
    ],
)
def test_torch_is_asked_through_its_accelerator_and_else_the_vendor(
    monkeypatch, accelerator, expected, source
):
    calls = []
    if accelerator is None:
        monkeypatch.delattr(torch.accelerator, "memory_stats")
    for module in (torch.accelerator, torch.cuda):
        for name in ("synchronize", "reset_peak_memory_stats"):
            note = f"{module.__name__}.{name}"
            monkeypatch.setattr(module, name, lambda d, n=note: calls.append((n, d)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    five = dict.fromkeys(STATISTICS, 5)
    if accelerator is not None:
        monkeypatch.setattr(torch.accelerator, "memory_stats", lambda device: accelerator)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: five)
    tracker = trackers.modules()["torch_allocator"].tracker("cuda:1")
    tracker.reset()
    readings = {r.metric: r for r in tracker.read()}
    assert readings["device_requested_peak_bytes"].value == expected
    assert readings["device_requested_peak_bytes"].source.startswith(source)
    assert {name.rpartition(".")[0] for name, _ in calls} == {source}
    assert {str(device) for _, device in calls} == {"cuda:1"}


def test_mps_is_sampled_at_borders_and_says_so():
    class Mps:
        def current_allocated_memory(self) -> int:
            return 300

        def driver_allocated_memory(self) -> int:
            return 500

    readings = NoPeaks(Mps()).read()
    assert {r.metric: r.value for r in readings} == {
        "device_allocated_peak_bytes": 300,
        "device_reserved_peak_bytes": 500,
    }
    assert {r.quality for r in readings} == {"sampled"}
    assert all("keeps no peak" in r.source for r in readings)


def test_without_cuda_the_device_figures_are_unavailable_with_a_reason():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert "CUDA" in trackers.available("cuda:0")[1]["torch_allocator"]
    assert "CPU" in trackers.available("cpu")[1]["torch_allocator"]
    assert "XPU" in trackers.available("xpu")[1]["torch_allocator"]
    assert "MPS" in trackers.available("mps")[1]["torch_allocator"]


_LIMITED = """
import torch
from bench.limits import MemoryLimit
from bench.failures import bytes_requested, status_of
torch.ones(2**20).sum()  # starts the pool of threads, whose stacks count
limit = MemoryLimit(64 * 2**20)
kept = torch.ones(40 * 2**20, dtype=torch.uint8)
assert 40 * 2**20 <= limit.in_use_bytes() < 48 * 2**20, limit.in_use_bytes()
try:
    torch.ones(48 * 2**20, dtype=torch.uint8)
except RuntimeError as error:
    print(status_of(error), bytes_requested(error))
limit.lift()
torch.ones(48 * 2**20, dtype=torch.uint8)
"""


@linux
def test_a_memory_limit_refuses_the_allocation_beyond_it():
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["out_of_memory", str(48 * MIB)], done.stderr
