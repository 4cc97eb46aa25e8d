"""NVML read through the real binding: right, or unavailable with a reason, and never 0."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import pynvml
import pytest
from scripted import GIB, ONE_GPU, TWO_GPUS

from bench.devices import gauges, sums, throttling
from bench.devices.nvml import Answer, Unavailable, open_devices

MIB = 1 << 20
ALL = (*gauges.NAMES,)

BUSY = f"""
{ONE_GPU} total={80 * GIB} reserved={600 * MIB}
at 0 0 mem {10 * GIB}
at 0 0 power 300
at 0 0 util 87
at 0 0 busutil 43
at 0 0 temp 61
at 0 0 smclk 1755
at 0 0 memclk 2619
at 0 0 ecc 3
proc 0 0 0 -
pmem 0 {7 * GIB}
"""


def values(found):
    return {name: answer.value for name, answer in found.items()}


def reasons(found):
    return {name: a.reason for name, a in found.items() if isinstance(a, Unavailable)}


def test_every_value_is_what_the_driver_says(nvml):
    nvml.play(BUSY)
    with open_devices() as devices:
        assert devices.unavailable is None and not devices.doubts
        (device,) = devices
        assert (device.index, device.ordinal, device.name) == (0, 0, "NVIDIA H100")
        assert device.uuid.startswith("GPU-aaaaaaaa") and not device.is_mig
        assert values(device.read(ALL)) == {
            "device_used_bytes": 10 * GIB,
            "device_free_bytes": 70 * GIB - 600 * MIB,
            "device_total_bytes": 80 * GIB,
            "device_driver_bytes": 600 * MIB,
            "process_used_bytes": 7 * GIB,
            "power_watts": 300.0,
            "power_instant_watts": 300.0,
            "energy_joules": 1000.0,
            "kernel_time_percent": 87,
            "memory_bus_time_percent": 43,
            "temperature_celsius": 61,
            "sm_clock_mhz": 1755,
            "memory_clock_mhz": 2619,
            "clock_reasons": 0,
            **dict.fromkeys(throttling.COUNTERS, 0.0),
            "ecc_corrected": 3,
            "ecc_uncorrected": 0,
        }


def test_each_answer_has_a_unit_a_source_and_a_quality(nvml):
    nvml.play(BUSY)
    with open_devices() as devices:
        found = devices[0].read(ALL)
    assert {name for names in gauges.NAMES.values() for name in names} == set(found)
    for name, answer in found.items():
        assert isinstance(answer, Answer) and answer.unit, name
        assert answer.source.startswith(("nvmlDeviceGet", "field ")), name
    exact = {name for name, answer in found.items() if answer.quality == "exact"}
    assert exact == {"energy_joules", "ecc_corrected", "ecc_uncorrected", *throttling.COUNTERS}


def test_facts_name_driver_board_and_modes(nvml):
    nvml.play(f"driver 535.54.03\ncuda 12020\n{ONE_GPU} acct=1 ecc=0 cc=9.0")
    with open_devices() as devices:
        found = values(devices[0].static())
    assert found["driver"] == "535.54.03" and found["cuda_driver"] == "12.2"
    assert found["pci"] == "00000000:18:00.0" and found["compute_capability"] == "9.0"
    assert (found["accounting"], found["ecc"], found["mig"]) == ("on", "off", "off")
    assert found["power_limit_watts"] == 700.0 and found["sm_clock_max_mhz"] == 1980
    assert found["coherent_memory_node"] is None  # this board shares no memory with the host


OLDER = {
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetGraphicsRunningProcesses_v3",
    "nvmlDeviceGetMPSComputeRunningProcesses_v3",
}


def test_an_older_driver_is_asked_the_older_way(nvml):
    nvml.play(BUSY + "at 0 0 reasons 4", hidden=OLDER)
    with open_devices() as devices:
        found = devices[0].read()
    assert found["device_used_bytes"] == Answer(
        10 * GIB + 600 * MIB,
        "B",
        "nvmlDeviceGetMemoryInfo v1, with what the driver keeps",
    )
    assert "version 1" in found["device_driver_bytes"].reason
    assert found["temperature_celsius"] == Answer(61, "degC", "nvmlDeviceGetTemperature")
    assert found["clock_reasons"].source == "nvmlDeviceGetCurrentClocksThrottleReasons"
    assert found["clock_reasons"].value == 4
    assert found["process_used_bytes"].value == 7 * GIB


def test_a_driver_without_the_function_is_a_reason_and_a_count(nvml):
    nvml.play(BUSY, hidden={"nvmlDeviceGetTotalEnergyConsumption", "nvmlDeviceGetFieldValues"})
    with open_devices() as devices:
        found = devices[0].read(ALL)
        assert found["energy_joules"].flag == "function_missing"
        assert "too old" in found["power_instant_watts"].reason
        assert found["thermal_seconds"].source == "nvmlDeviceGetViolationStatus"
        assert found["hardware_thermal_seconds"].value is None
        assert devices.session.errors["nvmlDeviceGetTotalEnergyConsumption", 13] == 1


def test_the_error_of_the_binding_that_is_none_of_nvml_is_a_reason(nvml):
    nvml.play(BUSY, hidden={"nvmlDeviceGetComputeRunningProcesses_v3"})
    with open_devices() as devices:
        board = pynvml.nvmlDeviceGetHandleByIndex(0)
        with pytest.raises(pynvml.NVMLLibraryMismatchError):
            pynvml.nvmlDeviceGetComputeRunningProcesses(board)
        told = devices.session.ask("nvmlDeviceGetComputeRunningProcesses", board)
    assert told.flag == "function_missing" and told.value is None


def test_what_the_binding_lacks_is_a_reason(nvml, monkeypatch):
    nvml.play(BUSY)
    monkeypatch.delattr(pynvml, "nvmlDeviceGetTemperatureV")
    monkeypatch.delattr(pynvml, "nvmlDeviceGetUtilizationRates")
    with open_devices() as devices:
        found = devices[0].read()
    assert "upgrade" in found["kernel_time_percent"].reason
    assert found["temperature_celsius"].value == 61


def test_a_module_that_only_calls_itself_pynvml_is_told(monkeypatch):
    monkeypatch.delattr(pynvml, "_nvmlGetFunctionPointer")
    with open_devices() as devices:
        assert "pip uninstall pynvml" in devices.unavailable.reason and not devices


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (9, "not loaded"),
        (12, "no libnvidia-ml.so.1"),
        (18, "differ in version"),
        (4, "permissions"),
        (15, "lost"),
        (777, "error 777"),
    ],
)
def test_an_nvml_that_does_not_start_is_a_reason(nvml, code, words):
    nvml.play(f"{ONE_GPU}\nfault nvmlInit* * {code}")
    with open_devices() as devices:
        assert words in devices.unavailable.reason
        assert len(devices) == 0
    assert nvml.inits == 0


def test_a_machine_without_a_driver_has_no_device_and_no_zero(nvml, monkeypatch):
    def absent(name):
        raise OSError(name)

    monkeypatch.setattr(pynvml, "nvmlLib", None)
    monkeypatch.setattr(pynvml, "CDLL", absent)
    with open_devices() as devices:
        assert "no NVIDIA driver" in devices.unavailable.reason
        assert list(devices) == []


@pytest.mark.parametrize("code", [3, 4, 999])
def test_one_gpu_may_lack_what_the_other_has(nvml, code):
    nvml.play(f"{TWO_GPUS}\nat 0 0 power 100\nat 1 0 power 200\nfault *Power* 1 {code}")
    with open_devices() as devices:
        whole, lacking = (device.read(("power",)) for device in devices)
    assert whole["power_watts"].value == 100.0
    assert lacking["power_watts"].value is None and lacking["power_watts"].code == code
    assert lacking["power_instant_watts"].value == 200.0


def test_power_of_the_module_stands_in_and_says_so(nvml):
    nvml.play(f"{BUSY}\nfault field:186 0 3\nfault field:186:1 0 3 1")
    with open_devices() as devices:
        found = devices[0].read(("power",))["power_instant_watts"]
        assert found == Answer(300.0, "W", "field 186, scope module")
        nvml.clock.set(2.0)
        assert "field 186" in devices[0].read(("power",))["power_instant_watts"].reason


def test_a_gpu_lost_in_mid_run_is_told_in_every_value_and_comes_back(nvml):
    clock = nvml.play(f"{BUSY}\nfault * 0 15 1.0 1.1")
    with open_devices() as devices:
        before = devices[0].read(ALL)
        clock.set(1.05)
        lost = devices[0].read(ALL)
        assert set(lost) == set(before)
        assert {answer.flag for answer in lost.values()} == {"gpu_lost"}
        assert all("fallen off the bus" in reason for reason in reasons(lost).values())
        assert devices[0].processes().flag == devices[0].energy_joules().flag == "gpu_lost"
        assert devices[0].accounting_peak().flag == "gpu_lost"
        assert not any(a.value == 0 for a in devices[0].static().values())
        clock.set(1.2)
        back = values(devices[0].read(("memory", "load")))
        assert back == {name: before[name].value for name in back}


def test_a_gpu_that_is_lost_from_the_start_leaves_the_others(nvml):
    nvml.play(f"{TWO_GPUS}\nfault nvmlDeviceGetUUID 0 15")
    with open_devices() as devices:
        assert [device.index for device in devices] == [1]
        assert {doubt.name for doubt in devices.doubts} == {"gpu_lost", "mapping_ambiguous"}
    nvml.play(f"{TWO_GPUS}\nfault nvmlDeviceGetUUID 0 15")
    with open_devices("GPU-bbbb") as devices:
        assert [doubt.name for doubt in devices.doubts] == ["gpu_lost"]  # named: no doubt which


def test_a_call_that_hangs_is_given_up_and_the_next_ones_at_once(nvml):
    clock = nvml.play(f"{BUSY}\nhang nvmlDeviceGetUtilizationRates 0 1 2")
    devices = open_devices()
    clock.set(1.5)
    devices.guard.seconds = 1.0
    start = time.perf_counter()
    hanging = devices[0].read()
    again = devices[0].read()
    assert time.perf_counter() - start < 1.9  # one deadline, not two
    assert {a.flag for a in (hanging | again).values()} == {"nvml_hangs"}
    assert "nvmlDeviceGetUtilizationRates did not answer within 1 s" in str(hanging["power_watts"])
    clock.set(2.5)
    devices.guard.seconds = 5.0
    devices.guard._late.done.wait(5)
    assert devices[0].read()["kernel_time_percent"].value == 87
    devices.close()
    assert nvml.inits == 0


def test_closing_while_a_call_hangs_leaves_nvml_open_under_it(nvml):
    clock = nvml.play(f"{BUSY}\nhang nvmlDeviceGetPowerUsage 0 1 2")
    devices = open_devices()
    clock.set(1.5)
    devices.guard.seconds = 0.05
    devices[0].read(("power",))
    devices.close()
    assert nvml.inits == 1
    assert "closed" in devices[0].read()["power_watts"].reason
    thread = devices.guard._thread
    assert thread.is_alive()
    clock.set(3.0)
    thread.join(5)
    assert not thread.is_alive()


def test_a_start_that_hangs_is_a_reason(nvml):
    nvml.play(f"{ONE_GPU}\nhang nvmlInit* * 0 1")
    devices = open_devices(deadline_seconds=0.05)
    assert devices.unavailable.flag == "nvml_hangs" and "nvmlInit" in devices.unavailable.reason
    nvml.clock.set(1.0)
    devices.guard._late.done.wait(5)
    assert len(devices) == 0
    devices.close()


def test_openings_are_counted_and_closing_twice_is_once(nvml):
    nvml.play(BUSY)
    first, second = open_devices(), open_devices()
    assert nvml.inits == 2
    first.close()
    first.close()
    assert nvml.inits == 1
    assert second[0].read(("load",))["kernel_time_percent"].value == 87
    second.close()
    assert nvml.inits == 0
    with open_devices() as third:
        assert third[0].read(("load",))["kernel_time_percent"].value == 87


def test_closing_under_reading_threads_ends_them_with_a_reason(nvml):
    nvml.play(BUSY)
    devices = open_devices()
    device, seen, failed = devices[0], [], []

    def read():
        try:
            while (used := device.read(("memory",))["device_used_bytes"]).value is not None:
                seen.append(used.value)
            failed.append(used)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    while len(seen) < 50:
        time.sleep(0.001)
    devices.close()
    for thread in threads:
        thread.join(10)
    assert [type(end) for end in failed] == [Unavailable] * 4
    assert set(seen) == {10 * GIB} and nvml.inits == 0


def in_a_child(work):
    """Return what ``work`` returns in a forked child, as text."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(write, str(work()).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        return pipe.read()


def test_a_forked_child_reads_on(nvml):
    nvml.play(BUSY)
    with open_devices() as devices:
        devices[0].read()
        used = in_a_child(lambda: devices[0].read(("memory",))["device_used_bytes"].value)
        assert used == str(10 * GIB)
        assert devices[0].read(("memory",))["device_used_bytes"].value == 10 * GIB


def test_a_forked_child_does_not_inherit_a_call_that_hangs(nvml):
    clock = nvml.play(f"{BUSY}\nhang nvmlDeviceGetPowerUsage 0 1 2")
    with open_devices() as devices:
        clock.set(1.5)
        devices.guard.seconds = 0.05
        assert devices[0].read(("power",))["power_watts"].flag == "nvml_hangs"
        devices.guard.seconds = 5.0
        used = in_a_child(lambda: devices[0].read(("memory",))["device_used_bytes"].value)
        assert used == str(10 * GIB)
        clock.set(2.5)
        devices.guard._late.done.wait(5)


def test_a_throttle_between_two_samples_is_in_the_counters(nvml):
    clock = nvml.play(f"{BUSY}\nat 0 0 reasons 0\nat 0 1.1 reasons 64\nat 0 1.3 reasons 4\n"
                      "at 0 1.4 reasons 0")  # fmt: skip
    with open_devices() as devices:
        (device,) = devices
        clock.set(1.0)
        before, seen = device.violations(), device.read(("clocks",))["clock_reasons"].value
        clock.set(2.0)
        after, then = device.violations(), device.read(("clocks",))["clock_reasons"].value
    assert seen == then == 0
    doubts = {doubt.text: doubt.name for doubt in throttling.throttled(before, after)}
    assert doubts == {
        "thermal held for 0.200 s": "throttled",
        "hardware thermal held for 0.200 s": "throttled",
        "power cap held for 0.100 s": "power_capped",
    }
    assert throttling.throttled(after, after) == []


def test_reasons_have_words_and_unknown_ones_their_number():
    assert throttling.names(0x44) == ["power cap", "hardware thermal slowdown"]
    assert throttling.names(0x1 | 1 << 40) == ["idle", "unknown reasons 0x10000000000"]
    assert throttling.names(0) == []


def test_ecc_that_is_off_is_no_zero(nvml):
    nvml.play(f"{ONE_GPU} ecc=0")
    with open_devices() as devices:
        found = devices[0].read(("ecc",))
    assert set(values(found).values()) == {None}


def test_accounting_tells_the_peak_that_sampling_missed(nvml):
    spike = "proc 0 0 0 -\npmem 0 1000000000\npmem 1.000 8900000000\npmem 1.003 2000000000"
    clock = nvml.play(f"{ONE_GPU} acct=1\n{spike}")
    with open_devices() as devices:
        clock.set(2.0)
        assert devices[0].own_memory().value == 2_000_000_000
        peak = devices[0].accounting_peak()
        assert (peak.value, peak.quality) == (8_900_000_000, "exact")
        assert devices[0].accounting_peak(pid=77).value is None
    nvml.play(f"{ONE_GPU} acct=0\n{spike}")
    with open_devices() as devices:
        assert "nvidia-smi -am 1" in devices[0].accounting_peak().reason
    for untold in (-1, 0):
        nvml.play(f"{ONE_GPU} acct=1\nproc 0 0 0 -\npmem 0 {untold}")
        with open_devices() as devices:
            assert devices[0].accounting_peak().value is None


def test_sums_over_devices_keep_apart_what_came_together(nvml):
    peaks = f"at 0 0 mem {30 * GIB}\nat 0 1 mem {10 * GIB}\nat 1 0 mem 0\nat 1 1 mem {40 * GIB}"
    clock = nvml.play(f"{TWO_GPUS}\n{peaks}\nfault nvmlDeviceGetMemoryInfo* 1 15 2 9")
    rows = []
    with open_devices() as devices:
        for t in (0.5, 1.5, 2.5):
            clock.set(t)
            rows.append({d.uuid: d.read(("memory",))["device_used_bytes"].value for d in devices})
    found = sums.peaks(rows)
    assert found == sums.Peaks(40 * GIB, 50 * GIB, 70 * GIB)
    assert rows[2][devices[1].uuid] is None
    assert isinstance(sums.peaks(rows[2:]), Unavailable)
    assert isinstance(sums.peaks([]), Unavailable)
    assert isinstance(sums.peaks([{"a": 1, "b": None}, {"a": None, "b": 1}]), Unavailable)


def test_capabilities_say_what_works_how_fast_and_why_not(nvml):
    nvml.play(f"{BUSY}\nfault nvmlDeviceGetTotalEnergyConsumption * 3")
    with open_devices() as devices:
        table = devices[0].capabilities()
    assert set(table) == {n for names in gauges.NAMES.values() for n in names} | {
        "accounting_peak_bytes"
    }
    assert table["device_used_bytes"].works and table["device_used_bytes"].microseconds > 0
    assert not table["energy_joules"].works and "support" in table["energy_joules"].reason
    assert all(c.works or c.reason for c in table.values())


PROGRAM = """
import os, sys
from bench.devices.nvml import open_devices
with open_devices() as devices:
    print(devices.unavailable or [d.read()["process_used_bytes"].value for d in devices])
heavy = {"torch", "pydantic", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""


def test_the_shipped_start_finds_the_library_and_imports_nothing_heavy(nvml):
    environment = nvml.startup(BUSY) | {"CUDA_VISIBLE_DEVICES": "GPU-aaaa"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True
    )
    assert done.stdout == f"[{7 * GIB}]\n", done.stderr
