"""Trackers against known allocations; every file of the folder is held to them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bench import trackers
from bench.trackers.host_memory import HostMemory

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
    tracker = HostMemory()
    torch.ones(24 * MIB, dtype=torch.uint8)  # a warm heap, in which plain RSS reads 0 for 8 MiB
    known_allocation(tracker, "host_peak_bytes", "cpu", size, 0.03)


@linux
def test_host_memory_sees_many_small_allocations():
    tracker = HostMemory()
    tracker.reset()
    before = peak(tracker, "host_peak_bytes")
    kept = [torch.ones(16 * 1024, dtype=torch.uint8) for _ in range(5000)]
    rise = peak(tracker, "host_peak_bytes") - before
    del kept
    assert abs(rise / (5000 * 16 * 1024) - 1) < 0.08


@pytest.mark.gpu
@gpu
@pytest.mark.parametrize("metric", ["device_allocated_peak_bytes", "device_requested_peak_bytes"])
def test_torch_allocator_sees_a_known_allocation(metric):
    tracker = trackers.modules()["torch_allocator"].tracker("cuda:0")
    tracker.settle()
    known_allocation(tracker, metric, "cuda:0", 64 * MIB, 0.001)


def test_torch_allocator_reads_the_statistics_torch_keeps(monkeypatch):
    """The CUDA path with torch's own statistics scripted: names, reset and order are ours."""
    calls = []
    statistics = {"allocated_bytes.all.peak": 512, "reserved_bytes.all.peak": 2048}
    statistics["requested_bytes.all.peak"] = 400
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda *a, n=name: calls.append(n))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda device: statistics)
    tracker = trackers.modules()["torch_allocator"].tracker("cuda:0")
    tracker.settle()
    tracker.reset()
    values = {r.metric: r.value for r in tracker.read()}
    assert values == {
        "device_allocated_peak_bytes": 512,
        "device_reserved_peak_bytes": 2048,
        "device_requested_peak_bytes": 400,
    }
    wait = "synchronize"
    assert calls == [wait, "empty_cache", wait, "reset_peak_memory_stats", wait]


def test_without_cuda_the_device_figures_are_unavailable_with_a_reason():
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert "CUDA" in trackers.available("cuda:0")[1]["torch_allocator"]
    assert "CPU" in trackers.available("cpu")[1]["torch_allocator"]


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
