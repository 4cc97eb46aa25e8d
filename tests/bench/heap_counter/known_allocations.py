"""Measures known allocations in this process, whose heap is counted; prints bytes as JSON."""

import gc
import json
import threading

import numpy
import torch
from torch.profiler import ProfilerActivity, profile

from bench.trackers.host_tensors import HostTensors

MIB, tracker = 2**20, HostTensors()


def tensor(size):
    return torch.ones(size, dtype=torch.uint8)


def many(n, size):
    return [tensor(size) for _ in range(n)]


def one_by_one():
    for _ in range(3):
        tensor(64 * MIB)


def at_once():
    return many(3, 64 * MIB)


layers = many(4, 4 * MIB)


def perturb():  # z of one layer at a time
    for layer in layers:
        layer.add_(torch.ones_like(layer))


def in_threads():
    held = []
    work = [threading.Thread(target=lambda: held.extend(many(200, 32 * 1024))) for _ in range(4)]
    for one in work:
        one.start()
    for one in work:
        one.join()


def arrays():
    return numpy.ones(16 * MIB, dtype=numpy.uint8), bytearray(16 * MIB)


def grown():
    text = bytearray()
    for _ in range(32):
        text += bytes(MIB)
    return text


def rest():
    """Do as the monitor does at the borders of main phases."""
    gc.collect()
    tracker.settle()


def peak(work):
    rest()
    tracker.reset()
    tracker.baseline()
    _kept = work()
    (reading,) = tracker.read()
    return reading.value


cases = {
    "one 64 MiB": (lambda: (tensor(64 * MIB), None)[1], 64),
    "one 8 MiB": (lambda: (tensor(8 * MIB), None)[1], 8),
    "10 x 32 MiB": (lambda: many(10, 32 * MIB), 320),
    "20,000 x 16 KiB": (lambda: many(20_000, 16 * 1024), 312.5),
    "2,000 x 64 KiB": (lambda: many(2_000, 64 * 1024), 125),
    "3 x 64 MiB": (at_once, 192),
    "3 x 64 MiB, one by one": (one_by_one, 64),
    "ZO perturb": (perturb, 4),
    "4 threads": (in_threads, 25),
    "numpy and bytes": (arrays, 32),
}
found = {}
for name, (work, known) in cases.items():
    work()
    found[name] = [known * MIB, *(peak(work) for _ in range(3))]

model = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(4)))
inputs = torch.ones(512, 1024)


def backprop():
    model(inputs).sum().backward()
    model.zero_grad()


backprop()
with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
    backprop()
alive = most = 0
for event in seen.profiler.kineto_results.events():
    if event.name() == "[memory]":
        alive += event.nbytes()
        most = max(most, alive)
found["backprop"] = [most, *(peak(backprop) for _ in range(3))]

gc.disable()
rest()
tracker.reset()
tracker.baseline()
kept = grown()
del kept
found["left of a grown one"] = [0, tracker._live() - tracker._base]

cycle: list[object] = [tensor(8 * MIB)]
cycle.append(cycle)
del cycle
rest()
tracker.reset()
found["left of dead cycles"] = [0, tracker.read()[0].value]
print(json.dumps(found))
