"""The device of a run through fakes: memory, limits, the allocator's snapshot; the environment."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path

import pytest
import torch

from bench import environment, executor, snapshot, worker
from bench.accelerator import Accelerator
from bench.cell import write_cell
from bench.records import UserError
from bench.snapshot import SNAPSHOT, VARIABLE, Snapshot

GIB = 2**30


class Vendor:
    """As much of torch.cuda as is asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.lost = False

    def mem_get_info(self, device):
        if self.lost:
            raise RuntimeError("CUDA error: device lost")
        return 3 * GIB, 80 * GIB

    def memory_reserved(self, device):
        return 70 * GIB

    def synchronize(self, device):
        self.calls.append(("synchronize", str(device)))

    def set_per_process_memory_fraction(self, share, index):
        self.calls.append((share, index))


def test_a_device_says_what_is_free_and_takes_a_limit_as_a_share():
    vendor = Vendor()
    device = Accelerator("cuda:1", vendor)
    assert device.free_and_total_bytes() == (3 * GIB, 80 * GIB)
    assert device.in_use_bytes() == 70 * GIB and not device.is_cpu
    device.synchronize()
    device.allow(20 * GIB)
    device.allow(900 * GIB)
    assert vendor.calls == [("synchronize", "cuda:1"), (0.25, 1), (1.0, 1)]


def test_a_lost_device_has_no_free_memory_rather_than_none_left():
    vendor = Vendor()
    vendor.lost = True
    assert Accelerator("cuda", vendor).free_and_total_bytes() is None


def test_nothing_is_asked_of_the_cpu():
    device = Accelerator("cpu")
    device.synchronize()
    assert device.is_cpu
    assert device.free_and_total_bytes() is None and device.in_use_bytes() is None


def test_a_failure_on_a_device_tells_what_was_asked_used_and_free(tmp_path, tiny_cell):
    cell = tiny_cell(device="cuda", memory_limit_bytes="71 GiB")
    write_cell(tmp_path, cell)
    run = worker.Run(tmp_path, cell)
    run.device = Accelerator("cuda", Vendor())
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0")
    run._failed()
    failure = run.failure(error)
    told = (failure.bytes_requested, failure.bytes_in_use, failure.bytes_free, failure.bytes_limit)
    assert told == (2 * GIB, 70 * GIB, 1 * GIB, 71 * GIB)
    run.events.close()


class Memory:
    """As much of torch.cuda.memory as is asked."""

    def __init__(self) -> None:
        self.entries, self.blocks = 0, []

    def _record_memory_history(self, max_entries):
        self.entries = max_entries

    def _dump_snapshot(self, name):
        Path(name).write_bytes(pickle.dumps({"segments": self.blocks}))


def test_the_allocators_snapshot_is_kept_whole_and_replaced(tmp_path):
    memory = Memory()
    kept = Snapshot(tmp_path, memory)
    assert memory.entries > 100_000
    for blocks in ([1], [1, 2]):
        memory.blocks = blocks
        kept.keep()
        assert pickle.loads((tmp_path / SNAPSHOT).read_bytes()) == {"segments": blocks}
    assert [p.name for p in tmp_path.iterdir()] == [SNAPSHOT]


def test_a_snapshot_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch):
    memory = Memory()
    kept = Snapshot(tmp_path, memory)
    kept.keep()

    def full(name):
        Path(name).write_bytes(b"torn")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(memory, "_dump_snapshot", full)
    kept.keep()
    assert pickle.loads((tmp_path / SNAPSHOT).read_bytes()) == {"segments": []}


@pytest.mark.parametrize("measure", ["memory", "time"])
def test_a_run_that_fails_keeps_its_snapshot_and_says_so(
    tmp_path, tiny_cell, monkeypatch, measure
):
    memory = Memory()
    monkeypatch.setenv(VARIABLE, "1")
    monkeypatch.setattr(worker, "Snapshot", lambda folder: Snapshot(folder, memory))
    cell = tiny_cell(device="cuda", measure=measure)
    write_cell(tmp_path, cell)
    run = worker.Run(tmp_path, cell)
    run.device = Accelerator("cuda", Vendor())
    run._record_history()
    run._failed()
    assert (tmp_path / SNAPSHOT).is_file()
    assert "memory_history" in (tmp_path / "events.jsonl").read_text()
    run.events.close()


def test_on_the_cpu_the_log_says_that_a_snapshot_needs_cuda(
    tmp_path, tiny_cell, monkeypatch, capsys
):
    monkeypatch.setenv(VARIABLE, "1")
    cell = tiny_cell()
    write_cell(tmp_path, cell)
    run = worker.Run(tmp_path, cell)
    run._record_history()
    assert run.snapshot is None and "needs CUDA" in capsys.readouterr().out
    run.events.close()


def test_a_snapshot_is_asked_for_in_the_environment_of_the_run_and_nowhere_else(
    tmp_path, tiny_cell, monkeypatch
):
    seen = []
    monkeypatch.delenv(VARIABLE, raising=False)

    def popen(command, *, env, **_):
        seen.append(env.get(VARIABLE))
        raise KeyboardInterrupt

    monkeypatch.setattr(executor, "prepare", lambda *_: None)
    monkeypatch.setattr(executor.subprocess, "Popen", popen)
    for asked in (True, False):
        with pytest.raises(KeyboardInterrupt):
            list(executor.run(tmp_path, [tiny_cell()], lambda *_: None, memory_snapshot=asked))
    assert seen == ["1", None] and not snapshot.asked()


# ----------------------------------------------------------------------------------- environment


def test_a_container_is_told_by_what_suggests_it(tmp_path):
    assert environment.container(tmp_path, {}) is None
    assert "KUBERNETES" in environment.container(tmp_path, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/1").mkdir()
    status = tmp_path / "proc/self/status"
    status.write_text("Name:\tpython\nNSpid:\t4711\n")
    (tmp_path / "proc/1/comm").write_text("systemd\n")
    assert environment.container(tmp_path, {}) is None
    (tmp_path / "proc/1/comm").write_text("tini\n")
    assert environment.container(tmp_path, {}) == "process 1 is tini"
    status.write_text("Name:\tpython\nNSpid:\t4711\t12\n")
    assert environment.container(tmp_path, {}) == "the process has 2 numbers: NSpid 4711 12"
    (tmp_path / ".dockerenv").write_text("")
    assert environment.container(tmp_path, {}) == "/.dockerenv is there"


def test_the_digest_of_the_code_is_moved_by_every_source_and_by_nothing_else(tmp_path):
    folder = tmp_path / "bench"
    folder.mkdir()

    def digest() -> str:
        return environment.digest_of(tmp_path, [folder])

    seen = [digest()]
    for name, text in (("a.py", "1"), ("heap.c", "1"), ("heap.c", "2"), ("b.c", "2")):
        (folder / name).write_text(text)
        seen.append(digest())
    assert len(set(seen)) == 5
    (folder / "notes.txt").write_text("")
    assert digest() == seen[-1]


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "xpu", "mps"])
def test_a_device_that_torch_does_not_see_is_refused(device):
    kind = device.partition(":")[0]
    if getattr(torch, kind).is_available():
        pytest.skip(f"this machine has {kind}")
    with pytest.raises(UserError, match=f"'{device}' is not here: torch sees 0 {kind.upper()}"):
        environment.check_device(device)
    environment.check_device("cpu")


def test_accelerators_are_named_by_the_module_of_their_kind(monkeypatch):
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device("xpu")
    )
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 2)
    monkeypatch.setattr(torch.xpu, "get_device_name", lambda i: f"Max 1550 #{i}")
    assert environment.device_names() == ["Max 1550 #0", "Max 1550 #1"]
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device("mps")
    )
    monkeypatch.setattr(torch.mps, "device_count", lambda: 1)
    (name,) = environment.device_names()
    assert name.startswith("mps")


def test_variables_that_change_memory_or_threads_are_kept(monkeypatch):
    for name in ("OMP_WAIT_POLICY", "CUDA_MODULE_LOADING", "PYTORCH_ALLOC_CONF"):
        monkeypatch.setenv(name, "x")
    read = environment.read("cpu").variables
    assert {"OMP_WAIT_POLICY", "CUDA_MODULE_LOADING", "PYTORCH_ALLOC_CONF"} <= set(read)


# ------------------------------------------------------------------------------ torch as it is

DEVICE = torch.device("cuda:0")
ASKED = [
    ("accelerator", "memory_stats", (DEVICE,)),
    ("accelerator", "reset_peak_memory_stats", (DEVICE,)),
    ("accelerator", "synchronize", (DEVICE,)),
    ("accelerator", "empty_cache", ()),
    *(
        (kind, name, (DEVICE,))
        for kind in ("cuda", "xpu")
        for name in (
            "memory_stats", "reset_peak_memory_stats", "synchronize", "mem_get_info",
            "memory_reserved", "current_stream",
        )
    ),
    ("cuda", "set_per_process_memory_fraction", (0.5, 0)),
    ("xpu", "set_per_process_memory_fraction", (0.5, 0)),
    ("mps", "set_per_process_memory_fraction", (0.5,)),
    ("mps", "recommended_max_memory", ()),
    ("mps", "driver_allocated_memory", ()),
    ("mps", "current_allocated_memory", ()),
]  # fmt: skip


@pytest.mark.parametrize(("module", "name", "arguments"), ASKED)
def test_torch_has_what_the_fakes_stand_for(module, name, arguments):
    inspect.signature(getattr(getattr(torch, module), name)).bind(*arguments)


def test_torch_takes_the_calls_that_keep_a_snapshot():
    memory = torch.cuda.memory
    inspect.signature(memory._record_memory_history_impl).bind(max_entries=5)
    inspect.signature(memory._dump_snapshot).bind("file")
