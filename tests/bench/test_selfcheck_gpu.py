"""The self-check of a GPU, played to it by a scripted NVML: is a driver that lies found out?"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
from scripted import GIB, ONE_GPU, TWO_GPUS, Clock

from bench.devices.nvml import open_devices
from bench.selfcheck import gpu, gpu_energy, gpu_memory
from bench.selfcheck.verdict import Verdict
from bench.trackers import Reading

MIB = 1 << 20
CONTEXT, RESERVED = 500 * MIB, 32 * MIB

MEMORY = f"""
{ONE_GPU} total={80 * GIB} reserved={600 * MIB} acct=1
at 0 0 mem {100 * MIB}
at 0 1 mem {100 * MIB + CONTEXT + RESERVED + 64 * MIB}
at 0 1.5 mem {100 * MIB + CONTEXT + RESERVED}
at 0 2 mem {100 * MIB + CONTEXT + RESERVED + GIB}
at 0 3 mem {100 * MIB + CONTEXT + RESERVED}
proc 0 0 1 -
pmem 1 {CONTEXT + RESERVED + 64 * MIB}
pmem 1.5 {CONTEXT + RESERVED}
pmem 2 {CONTEXT + RESERVED + GIB}
pmem 3 {CONTEXT + RESERVED}
"""
LOAD = """
at 0 0 power 70
at 0 3.5 power 300
at 0 3.5 util 98
energy_period 0.1
"""


class Allocator:
    """A tracker of torch's allocator that knows what the work holds."""

    def __init__(self, work: Scripted) -> None:
        self.work = work

    def settle(self) -> None:
        self.work.clock.set(1.5)  # the cache of 64 MiB is given back

    def reset(self) -> None: ...

    def baseline(self) -> list[Reading]:
        return []

    def totals(self) -> list[Reading]:
        return []

    def read(self) -> list[Reading]:
        seen = self.work.seen(self.work.held + 2 * MIB)
        names = ("allocated", "reserved", "requested")
        return [Reading(f"device_{n}_peak_bytes", seen, "exact", "a fake") for n in names]


class Scripted:
    """Work that takes the scenario to the moment when it was done."""

    def __init__(self, clock: Clock, seen: Callable[[int], int] = lambda held: held) -> None:
        self.clock, self.held, self.up, self.seen = clock, 0, False, seen

    def begin(self) -> None:
        self.up = True
        self.clock.set(1.0)

    def allocate(self, nbytes: int) -> None:
        self.held += nbytes
        self.clock.set(2.0)

    def release(self) -> None:
        self.held = 0
        self.clock.set(3.0)

    def reserved_bytes(self) -> int:
        return RESERVED + self.held if self.up else 0

    def busy(self, seconds: float) -> None:
        self.clock.forward(seconds)

    def tracker(self) -> Allocator:
        return Allocator(self)


def memory(nvml, scenario: str, seen: Callable[[int], int] = lambda held: held):
    work = Scripted(nvml.play(scenario), seen)
    with open_devices() as devices:
        return by_case(gpu_memory.verdicts(devices[0], work, "GPU 0"))


def energy(nvml, scenario: str):
    clock = nvml.play(scenario)
    work = Scripted(clock)
    clock.set(3.0)
    with open_devices() as devices:
        return by_case(gpu_energy.verdicts(devices[0], work, "GPU 0", lambda: clock.now))


def by_case(several) -> dict[tuple[str, str], Verdict]:
    return {(v.meter.removesuffix(", GPU 0"), v.case): v for v in several}


def states(found) -> dict[tuple[str, str], str]:
    return {key: verdict.state for key, verdict in found.items()}


DEVICE, PROCESS = "NVML device memory", "NVML process memory"
TAKEN, BACK = "1 GiB allocated", "1 GiB given back"
PEAK = ("NVML accounting", "peak since the process began")


def test_a_driver_that_tells_the_truth_passes_everywhere(nvml):
    found = memory(nvml, MEMORY)
    assert states(found) == {
        ("CUDA context", "after a matrix product"): "told",
        **{("torch allocator", f"1 GiB, {k}"): "ok"
           for k in ("allocated", "reserved", "requested")},
        (DEVICE, TAKEN): "ok",
        (DEVICE, BACK): "ok",
        (PROCESS, TAKEN): "ok",
        (PROCESS, BACK): "ok",
        PEAK: "ok",
    }  # fmt: skip
    assert found["CUDA context", "after a matrix product"].measured == CONTEXT
    assert found[DEVICE, TAKEN].expected == found[DEVICE, TAKEN].measured == GIB
    assert found[DEVICE, BACK].measured == -GIB


@pytest.mark.parametrize(
    ("lie", "caught"),
    [
        (f"at 0 2 mem {100 * MIB + CONTEXT + RESERVED + GIB - 3 * MIB}",
         {(DEVICE, TAKEN), (DEVICE, BACK)}),
        (f"at 0 3 mem {100 * MIB + CONTEXT + RESERVED + GIB}", {(DEVICE, BACK)}),
        (f"pmem 2 {CONTEXT + RESERVED + GIB // 2}",
         {(PROCESS, TAKEN), (PROCESS, BACK), PEAK}),
    ],
)  # fmt: skip
def test_a_driver_that_lies_about_memory_is_caught(nvml, lie, caught):
    what = lie.split()[:-1]
    lines = [lie if line.split()[:-1] == what else line for line in MEMORY.splitlines() if line]
    assert lie in lines
    found = memory(nvml, "\n".join(lines))
    assert {key for key, verdict in found.items() if verdict.state == "wrong"} == caught


def test_an_allocator_that_loses_bytes_is_caught(nvml):
    found = memory(nvml, MEMORY, lambda held: held - held // 100)
    wrong = {case for (_, case), verdict in found.items() if verdict.state == "wrong"}
    assert wrong == {f"1 GiB, {kind}" for kind in ("allocated", "reserved", "requested")}


def test_neighbours_make_the_memory_of_the_device_no_verdict(nvml):
    found = memory(nvml, f"{MEMORY}\nproc 0 777 1.5 -\npmem 1.5 {3 * GIB}")
    verdict = found[DEVICE, "1 GiB"]
    assert verdict.state == "unavailable" and "1 other processes" in verdict.detail
    assert (DEVICE, TAKEN) not in found
    assert found[PROCESS, TAKEN].state == "ok"


def test_a_container_that_hides_us_is_unavailable_and_not_wrong(nvml):
    hidden = MEMORY.replace("proc 0 0 1 -", "proc 0 4194000 1 -").replace("acct=1", "acct=0")
    found = memory(nvml, hidden)
    assert found[PROCESS, TAKEN].state == "unavailable"
    assert found[DEVICE, TAKEN].state == "ok"  # the one that came is us
    assert "accounting is off" in found[PEAK].detail


COUNTER = ("NVML energy counter", "7.0 s of matrix products, against polled power")


def test_energy_that_agrees_with_polling_passes_and_its_step_is_told(nvml):
    found = energy(nvml, MEMORY + LOAD)
    assert states(found) == {
        COUNTER: "ok",
        ("NVML energy counter", "time between its steps"): "told",
        ("NVML power", "under load"): "told",
        ("NVML utilisation", "under load"): "ok",
    }
    assert found[COUNTER].measured == pytest.approx(2100, rel=0.02)
    assert found["NVML energy counter", "time between its steps"].measured == pytest.approx(0.1)
    assert found["NVML power", "under load"].measured == 300


def test_a_sensor_that_looks_at_the_wrong_moments_is_caught(nvml):
    # 25 ms of every 100 ms are looked at, and the load has the same rhythm.
    wave = "\n".join(
        f"at 0 {4 + i / 20:.2f} power {500 if i % 2 else 100}" for i in range(200)
    )  # fmt: skip
    sensor = "power_period 0.1\npower_window 0.025"
    found = energy(nvml, f"{MEMORY}\n{LOAD}\n{wave}\n{sensor}")
    assert found[COUNTER].state == "wrong"


def test_a_counter_that_starts_again_is_caught(nvml):
    found = energy(nvml, f"{MEMORY}\n{LOAD}\nenergy_reset 0 10")
    (verdict,) = [v for v in found.values() if "energy" in v.meter and v.state != "told"]
    assert verdict.state == "wrong" and "fell from" in verdict.detail


def test_a_board_without_a_counter_says_so(nvml):
    found = energy(nvml, f"{MEMORY}\n{LOAD}\nfault nvmlDeviceGetTotalEnergyConsumption 0 3")
    verdict = found["NVML energy counter", "7.0 s of matrix products"]
    assert verdict.state == "unavailable" and "does not support" in verdict.detail


def test_power_and_load_that_do_not_move_under_work_are_caught(nvml):
    found = energy(nvml, f"{MEMORY}\nat 0 0 power 70\nat 0 0 util 0\nenergy_period 0.1")
    assert found["NVML power", "under load"].state == "wrong"
    assert found["NVML utilisation", "under load"].state == "wrong"


def test_calls_have_a_latency_or_a_reason(nvml):
    nvml.play(f"{MEMORY}\n{LOAD}\nfault nvmlDeviceGetTotalEnergyConsumption 0 3")
    with open_devices() as devices:
        found = by_case(gpu_energy.latencies(devices[0], "GPU 0"))
    assert found["NVML calls", "energy"].state == "unavailable"
    assert found["NVML calls", "memory"].state == "told"
    assert 0 < found["NVML calls", "memory"].measured < 1


def test_load_is_judged_by_the_time_that_there_was_work(nvml):
    clock = nvml.play(f"{MEMORY}\n{LOAD}\nat 0 3.6 util 50")
    clock.set(3.0)

    with open_devices() as devices:
        device = devices[0]
        read = device.read

        def slowly(subjects):  # a reading takes as long as the work before it
            clock.forward(0.05 if "load" in subjects else 0.0)
            return read(subjects)

        device.read = slowly  # type: ignore[method-assign]
        verdicts = gpu_energy.verdicts(device, Scripted(clock), "GPU 0", lambda: clock.now)
        found = by_case(verdicts)
    verdict = found["NVML utilisation", "under load"]
    assert verdict.expected == pytest.approx(50, abs=2) and verdict.state == "ok"


def test_a_machine_without_a_gpu_gives_one_reason(nvml):
    nvml.play(f"{ONE_GPU}\nfault nvmlInit* * 9")
    (verdict,) = gpu.verdicts()
    assert verdict.state == "unavailable" and "not loaded" in verdict.detail


def test_a_driver_that_hangs_is_wrong_and_torch_is_not_asked(nvml, monkeypatch):
    def never():
        raise AssertionError("torch would hang with it")

    monkeypatch.setattr(gpu.torch.cuda, "is_available", never)
    monkeypatch.setattr(gpu, "open_devices", lambda: open_devices(deadline_seconds=0.05))
    clock = nvml.play(f"{ONE_GPU}\nhang nvmlInit* * 0 1")
    (verdict,) = gpu.verdicts()
    clock.set(1.0)
    assert verdict.state == "wrong" and "did not answer" in verdict.detail


@pytest.mark.parametrize(
    ("scenario", "number", "uuid"),
    [
        (TWO_GPUS, "bbbbbbbb-1111-2222-3333-444444444444", "GPU-bbbbbbbb-1111"),
        (f"{ONE_GPU} mig=1\nmig 0 name=H100-1g uuid=MIG-cccc-1 gi=1 ci=0 total={10 * GIB}",
         "cccc-1", "MIG-cccc-1"),
        (ONE_GPU, "dddd", None),
    ],
)  # fmt: skip
def test_devices_are_found_by_the_uuid_that_torch_gives(nvml, monkeypatch, scenario, number, uuid):
    nvml.play(scenario)
    monkeypatch.setattr(gpu.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        gpu.torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=number)
    )
    with gpu.opened() as devices:
        if uuid is None:
            assert devices.unavailable is not None and "shows none" in devices.unavailable.reason
        else:
            (device,) = devices
            assert device.uuid.startswith(uuid)
    assert nvml.inits == 0


def test_all_devices_of_torch_are_checked_in_its_order(nvml, monkeypatch):
    nvml.play(f"{MEMORY}\n{LOAD}")
    made = []

    class Counted(Scripted):
        def __init__(self, device: str) -> None:
            super().__init__(nvml.clock)
            made.append(device)

    monkeypatch.setattr(gpu, "TorchWork", Counted)
    monkeypatch.setattr(gpu_energy.time, "monotonic", lambda: nvml.clock.now)
    monkeypatch.setattr(gpu_energy, "SECONDS", 0.2)
    with open_devices() as devices:
        meters = {v.meter for v in gpu.all_of(devices)}
    assert made == ["cuda:0"]
    assert {"NVML device memory, GPU 0", "NVML calls, GPU 0"} <= meters


@pytest.fixture
def seen_by_torch(monkeypatch):
    numbers = [f"{letter * 8}-1111-2222-3333-444444444444" for letter in "ab"]
    monkeypatch.setattr(gpu.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        gpu.torch.cuda, "get_device_properties", lambda index: SimpleNamespace(uuid=numbers[index])
    )
    for module, name in ((gpu.gpu_memory, "verdicts"), (gpu.gpu_energy, "verdicts")):
        monkeypatch.setattr(module, name, lambda device, work, label: [(device.uuid, label)])
    monkeypatch.setattr(gpu.gpu_energy, "latencies", lambda device, label: [])
    return numbers


def test_a_device_keeps_its_number_where_the_one_before_it_is_missing(
    nvml, monkeypatch, seen_by_torch
):
    nvml.play(TWO_GPUS)
    made = []
    monkeypatch.setattr(gpu, "TorchWork", made.append)
    with gpu.opened() as devices:
        assert set(gpu.all_of(devices[1:])) == {(f"GPU-{seen_by_torch[1]}", "GPU 1")}
    assert made == ["cuda:1"]


def test_a_device_of_torch_that_nvml_does_not_open_is_broken(nvml, monkeypatch, seen_by_torch):
    nvml.play(f"{TWO_GPUS}\nfault nvmlDeviceGetUUID 1 15")
    monkeypatch.setattr(gpu, "TorchWork", lambda device: device)
    found = list(gpu.verdicts())
    (verdict,) = (v for v in found if isinstance(v, Verdict))
    assert (verdict.meter, verdict.state) == ("NVML, GPU 1", "wrong")
    assert seen_by_torch[1] in verdict.detail and "names no device here" in verdict.detail
    assert (f"GPU-{seen_by_torch[0]}", "GPU 0") in found
