"""What the doctor says of a machine: its GPUs as a scripted driver plays them, its CPU."""

from __future__ import annotations

import json
import time
from collections import namedtuple

import pytest
from scripted import GIB, ONE_GPU, TWO_GPUS

from bench.checkup import gpus, host
from bench.cli import doctor
from bench.devices.nvml import open_devices

MIB = 1 << 20


def said(scenario: str, nvml, **playing: object) -> dict[str, tuple[str, str]]:
    nvml.play(scenario, **playing)
    with open_devices() as devices:
        return {f.what: (f.state, f.detail) for f in gpus.findings(devices)}


def test_every_value_of_a_gpu_is_exact_sampled_or_unavailable_with_source_and_latency(nvml):
    found = said(f"{ONE_GPU} total={80 * GIB} ecc=0 acct=0", nvml)
    assert found["GPU 0"][1].startswith("NVIDIA H100, GPU-aaaaaaaa")
    state, detail = found["GPU 0 memory"]
    assert state == "sampled" and detail.startswith("nvmlDeviceGetMemoryInfo_v2, ")
    assert detail.endswith(" us")
    assert found["GPU 0 energy"][0] == "exact"
    assert found["GPU 0 violations"][0] == "exact"
    assert found["GPU 0 ecc"][0] == "unavailable"
    assert "accounting is off" in found["GPU 0 accounting"][1]
    assert "driver" in found["NVML"][1]


def test_what_an_older_driver_lacks_is_named_beside_what_it_has(nvml):
    found = said(f"{ONE_GPU}\nfault field:186 0 3\nfault field:186:1 0 3", nvml)
    assert found["GPU 0 power (power_watts)"][0] == "sampled"
    state, detail = found["GPU 0 power (power_instant_watts)"]
    assert state == "unavailable" and "does not support" in detail


def test_a_gpu_that_nobody_uses_is_idle(nvml):
    found = said(f"{TWO_GPUS}", nvml)
    assert found["GPU 0 idle"] == found["GPU 1 idle"]
    assert found["GPU 0 idle"] == ("ok", "no other process, no load, no memory used")


@pytest.mark.parametrize(
    ("use", "word"),
    [
        (f"proc 0 777 0 -\npmem 0 {GIB}", "1 other processes (777)"),
        ("at 0 0 util 3", "3 % of the time"),
        (f"at 0 0 mem {400 * MIB}", "400 MiB used"),
    ],
)
def test_a_gpu_in_use_is_told_and_by_what(nvml, use, word):
    state, detail = said(f"{ONE_GPU}\n{use}", nvml)["GPU 0 idle"]
    assert state == "note" and word in detail


def test_idleness_that_cannot_be_known_is_not_called_idle(nvml):
    state, detail = said(f"{ONE_GPU}\nfault nvmlDeviceGetUtilizationRates 0 3", nvml)["GPU 0 idle"]
    assert state == "unavailable" and "not known: load" in detail


def test_a_mapping_in_doubt_is_a_row(nvml):
    nvml.play(f"{TWO_GPUS}\nfault nvmlDeviceGetUUID 0 15")
    with open_devices() as devices:
        notes = [f.detail for f in gpus.findings(devices) if f.state == "note"]
    assert any(note.startswith("mapping_ambiguous: ") for note in notes)


def test_a_driver_that_hangs_is_a_row_and_nobody_waits_for_it(nvml, monkeypatch):
    def never():
        raise AssertionError("torch would hang with it")

    monkeypatch.setattr(doctor.torch.cuda, "is_available", never)
    monkeypatch.setattr(doctor.environment, "device_names", never)
    monkeypatch.setattr(host, "findings", lambda: iter(()))
    clock = nvml.play(f"{ONE_GPU}\nhang nvmlInit* * 0 1")
    start = time.perf_counter()
    with open_devices(deadline_seconds=0.1) as devices:
        assert doctor._device(devices) == "cpu"
        found = {f.what: f for f in doctor.examine("cpu", devices)}
        body = doctor._body("cpu", devices, list(found.values()))
        clock.set(1.0)
    assert time.perf_counter() - start < 5
    assert found["NVML"].state == "unavailable" and "did not answer" in found["NVML"].detail
    assert "would hang" in found["accelerator"].detail
    assert body["environment"] is None and body["devices"] == []


def test_a_program_gets_every_fact_and_capability(nvml):
    nvml.play(f"driver 580.95.05\n{ONE_GPU} acct=1")
    with open_devices() as devices:
        (one,) = json.loads(json.dumps(gpus.facts(devices)))
    assert one["facts"]["driver"] == {"value": "580.95.05", "unit": ""}
    assert one["facts"]["coherent_memory_node"]["value"] is None
    assert one["capabilities"]["energy_joules"]["quality"] == "exact"
    assert one["capabilities"]["device_used_bytes"]["microseconds"] > 0
    assert one["capabilities"]["process_used_bytes"]["reason"]


# --------------------------------------------------------------------------------------- the host


def test_a_cpu_that_others_use_is_told_before_a_run_is_flagged():
    assert host.idle(0.1, 2, 0.3).state == "ok"
    busy = host.idle(1.5, 2, 3.0)
    assert busy.state == "note" and "host_busy" in busy.detail and "1.5 of 2" in busy.detail


Times = namedtuple("Times", "user system idle iowait guest guest_nice")
Own = namedtuple("Own", "user system")


def test_our_own_work_and_waiting_do_not_count_as_others(monkeypatch):
    machine = iter([Times(100, 10, 500, 5, 4, 0), Times(101.5, 10.5, 600, 9, 4.5, 0)])
    own = iter([Own(3, 1), Own(3.5, 1.25)])
    clock = iter([0.0, 0.5])
    monkeypatch.setattr(host.psutil, "cpu_times", lambda: next(machine))
    monkeypatch.setattr(host.psutil.Process, "cpu_times", lambda self: next(own))
    monkeypatch.setattr(host.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(host.time, "sleep", lambda seconds: None)
    # user and system 2 s (a guest's 0.5 s is in user), of them 0.75 s our own, in half a second
    assert host.others_busy_cpus() == pytest.approx(2.5)


@pytest.mark.parametrize(
    ("seconds", "state", "word"),
    [
        ([1.0, 1.001, 1.0, 1.002, 0.999], "ok", "can be compared"),
        ([1.0, 1.05, 1.0, 0.95, 1.0, 1.04], "note", "may be equal"),
        ([1.0, 1.5, 1.0, 3.0, 0.9], "note", "compare CPU seconds"),
        ([1.0, 70.0, 1.0, 60.0, 65.0], "note", "times: the middle half"),
    ],
)
def test_a_noise_score_says_what_it_means_for_timings(seconds, state, word):
    found = host.noise(seconds)
    assert found.state == state and word in found.detail


def test_equal_work_is_timed_for_a_second_and_threads_are_put_back():
    before = host.torch.get_num_threads()
    start = time.perf_counter()
    seconds = host.equal_work()
    assert len(seconds) > 3 and sum(seconds) > 0.5
    assert time.perf_counter() - start < 30
    assert host.torch.get_num_threads() == before
