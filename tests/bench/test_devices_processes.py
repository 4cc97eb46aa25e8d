"""Whose memory it is: both layouts of the list, what drivers leave out, containers, intruders."""

from __future__ import annotations

import os

import pytest
from scripted import GIB, ONE_GPU

from bench.devices.nvml import Answer, Unavailable, open_devices
from bench.devices.processes import Process, newcomer, own_memory

ME = os.getpid()
THREE = f"""
{ONE_GPU}
proc 0 4321 0 -
pmem 0 {2 * GIB}
proc 0 0 0 -
pmem 0 {3 * GIB}
proc 0 999999 0 -
pmem 0 -1
"""
EARLY_R535 = {"nvmlDeviceGetRunningProcessDetailList"}
NO_V3 = {f"nvmlDeviceGet{k}RunningProcesses_v3" for k in ("Compute", "Graphics", "MPSCompute")}
NO_V2 = NO_V3 | {name.replace("_v3", "_v2") for name in NO_V3}


def process(pid: int, used: int | None, kind: str = "Compute") -> Process:
    return Process(pid, used, kind, None)


@pytest.mark.parametrize(
    ("extra", "hidden", "source"),
    [
        ("", (), "_v3"),
        ("legacy_v3", EARLY_R535, "_v3, 32-byte records"),
        ("", NO_V3, "_v2"),
        ("", NO_V2, ""),
    ],
    ids=["v3", "v3 of early R535, 32 bytes", "v2", "v1"],
)
def test_every_layout_gives_the_same_list(nvml, extra, hidden, source):
    nvml.play(f"{THREE}{extra}", hidden=hidden)
    with open_devices() as devices:
        listed = devices[0].processes()
        assert listed == (process(4321, 2 * GIB), process(ME, 3 * GIB), process(999999, None))
        own = devices[0].own_memory()
        assert own == Answer(3 * GIB, "B", f"nvmlDeviceGetComputeRunningProcesses{source}")


def test_a_list_in_no_known_layout_is_refused(nvml):
    # The process numbers are larger than Linux has, as when memory is read as a number.
    nvml.play(f"{ONE_GPU}\nproc 0 4294967295 0 -\npmem 0 5")
    with open_devices() as devices:
        assert devices[0].processes().flag == "process_list_garbled"
        found = devices[0].read(("process",))["process_used_bytes"]
        assert found.flag == "process_list_garbled" and "4294967295" in found.reason
        assert devices[0].others().flag == "process_list_garbled"


def test_more_memory_than_the_device_has_is_a_garbled_list(nvml):
    nvml.play(f"{ONE_GPU} total={GIB}\nproc 0 0 0 -\npmem 0 {2 * GIB}")
    with open_devices() as devices:
        assert devices[0].own_memory().flag == "process_list_garbled"


@pytest.mark.parametrize("used", [-1, 0])
def test_memory_that_the_driver_does_not_tell_is_no_zero(nvml, used):
    nvml.play(f"{ONE_GPU}\nproc 0 0 0 -\npmem 0 {used}")
    with open_devices() as devices:
        for own in (devices[0].own_memory(), devices[0].read(("process",))["process_used_bytes"]):
            assert own.value is None and own.flag == "own_memory_unreadable"
            assert "does not say" in own.reason


def test_a_container_with_other_numbers_is_told(nvml):
    nvml.play(f"{ONE_GPU}\nproc 0 4194303 0 -\npmem 0 {GIB}")
    with open_devices() as devices:
        own = devices[0].own_memory(holds_bytes=GIB)
        assert own.flag == "own_memory_unreadable"
        assert "a container with its own process numbers" in own.reason
        assert [p.pid for p in devices[0].others()] == [4194303]


def test_a_process_that_is_not_listed_may_have_no_context_yet(nvml):
    nvml.play(ONE_GPU)
    with open_devices() as devices:
        own = devices[0].own_memory()
        assert own.value is None and own.flag is None and "no context there yet" in own.reason
        holding = devices[0].own_memory(holds_bytes=5)
        assert holding.flag == "own_memory_unreadable" and "hides processes" in holding.reason
        assert devices[0].processes() == ()  # an empty list is a list


def test_the_parent_of_a_sampler_can_be_watched(nvml):
    nvml.play(THREE)
    with open_devices(pid=4321) as devices:
        assert devices[0].own_memory().value == 2 * GIB
        assert {p.pid for p in devices[0].others(own=[ME])} == {999999}


def test_an_intruder_of_300_ms_is_seen_while_it_is_there(nvml):
    clock = nvml.play(f"{THREE}\nproc 0 777 1.0 1.3\npmem 0 {GIB}")
    seen = []
    with open_devices() as devices:
        for tenth in range(20):
            clock.set(tenth / 10)
            if any(p.pid == 777 for p in devices[0].others(own=[4321, 999999])):
                seen.append(tenth)
    assert seen == [10, 11, 12]


def test_a_process_on_two_lists_counts_once(nvml):
    nvml.play(f"{ONE_GPU}\nproc 0 0 0 -\npmem 0 {GIB}\ngraphics 0 0 0 -\npmem 0 {GIB}\n"
              "graphics 0 50 0 -\npmem 0 7")  # fmt: skip
    with open_devices() as devices:
        assert devices[0].processes() == (process(ME, GIB), process(50, 7, "Graphics"))
        assert devices[0].own_memory().value == GIB


def test_a_gpu_that_lists_no_graphics_lists_the_rest(nvml):
    nvml.play(f"{THREE}\nfault nvmlDeviceGetGraphics* * 3\nfault nvmlDeviceGetMPS* * 3")
    with open_devices() as devices:
        assert len(devices[0].processes()) == 3
    nvml.play(f"{THREE}\nfault nvmlDeviceGetCompute* * 4")
    with open_devices() as devices:
        assert "permissions" in devices[0].processes().reason


def test_a_list_that_can_not_be_read_passes_its_reason_on():
    lost = Unavailable("the GPU is lost", flag="gpu_lost")
    assert own_memory(lost, ME) is lost


def test_we_are_the_one_that_grew_by_what_we_took():
    before = [process(10, 100), process(20, None)]
    assert newcomer(before, [*before, process(30, 64)], 64) == 30
    assert newcomer(before, [process(10, 164), process(20, None)], 64) == 10
    assert newcomer(before, before, 64) is None
    assert newcomer(before, [*before, process(30, 64), process(40, 64)], 64) is None
