"""The scripted library is honest: it agrees with NVIDIA's header and with others' readers."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys

import pynvml
import pytest
import scripted
from scripted import GIB, ONE_GPU, TWO_GPUS

from bench.devices.nvml import open_devices


def test_it_compiles_against_nvidias_header(nvml_builds):
    header = scripted.header_folder()
    if header is None:
        pytest.skip("NVIDIA's nvml.h is not here; pip install nvidia-nvml-dev")
    assert scripted.build(nvml_builds, header=header).exists()


def test_a_wrong_prototype_is_refused_by_the_header(nvml_builds, tmp_path, monkeypatch):
    header = scripted.header_folder()
    if header is None:
        pytest.skip("NVIDIA's nvml.h is not here; pip install nvidia-nvml-dev")
    wrong = tmp_path / "wrong.c"
    right = "R nvmlDeviceGetPowerUsage(D d, u32 *mw)"
    text = scripted.SOURCE.read_text()
    assert right in text
    wrong.write_text(text.replace(right, right.replace("u32", "u64")))
    monkeypatch.setattr(scripted, "SOURCE", wrong)
    with pytest.raises(subprocess.CalledProcessError) as error:
        scripted.build(tmp_path, header=header)
    assert "conflicting types for" in error.value.stderr


def test_structures_have_the_size_that_the_binding_has(nvml):
    nvml.play(ONE_GPU)
    pynvml.nvmlInit()
    board = pynvml.nvmlDeviceGetHandleByIndex(0)
    # The library itself refuses a structure whose size or version it does not know.
    assert pynvml.nvmlDeviceGetMemoryInfo(board, pynvml.nvmlMemory_v2).total == 80 * GIB
    with pytest.raises(pynvml.NVMLError) as error:
        pynvml.nvmlDeviceGetMemoryInfo(board, pynvml.nvmlMemory_v2 + 8)
    assert error.value.value == pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH


def test_version_1_of_memory_counts_the_drivers_own_and_version_2_does_not(nvml):
    nvml.play(f"{ONE_GPU} reserved=600 total=10000\nat 0 0 mem 1000")
    pynvml.nvmlInit()
    board = pynvml.nvmlDeviceGetHandleByIndex(0)
    old = pynvml.nvmlDeviceGetMemoryInfo(board)
    new = pynvml.nvmlDeviceGetMemoryInfo(board, pynvml.nvmlMemory_v2)
    assert (old.used, old.free) == (1600, 8400)
    assert (new.used, new.free, new.reserved) == (1000, 8400, 600)


def test_hidden_functions_are_not_there(nvml):
    nvml.play(ONE_GPU, hidden={"nvmlDeviceGetMemoryInfo_v2"})
    pynvml.nvmlInit()
    board = pynvml.nvmlDeviceGetHandleByIndex(0)
    assert pynvml.nvmlDeviceGetMemoryInfo(board).total == 80 * GIB
    with pytest.raises(pynvml.NVMLError_FunctionNotFound):
        pynvml.nvmlDeviceGetMemoryInfo(board, pynvml.nvmlMemory_v2)


def test_a_scenario_that_can_not_be_read_ends_the_process(nvml):
    program = "import pynvml; pynvml.nvmlInit()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=nvml.startup(f"{ONE_GPU}\nat 0 1 memory 5"),
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "can't read: at 0 1 memory 5" in done.stderr


SCENE = f"""
{TWO_GPUS}
at 0 0 mem {10 * GIB}
at 0 0 power 300
at 0 0 util 55
at 0 0 temp 61
at 1 0 mem {20 * GIB}
at 1 0 power 100
at 1 0 util 5
at 1 0 temp 41
proc 0 0 0 -
pmem 0 {7 * GIB}
"""

NVITOP = """
import json
from nvitop import Device
print(json.dumps([[d.uuid(), d.memory_used(), d.power_usage(), d.gpu_utilization(),
                   d.temperature(), sorted(p.gpu_memory() for p in d.processes().values())]
                  for d in Device.all()]))
"""
GPUSTAT = """
import json
from gpustat import GPUStatCollection
print(json.dumps([[g.uuid, g.memory_used, g.power_draw, g.utilization, g.temperature,
                   [p["gpu_memory_usage"] for p in g.processes]]
                  for g in GPUStatCollection.new_query()]))
"""
ZEUS = """
import json, os, struct
from zeus.device import get_gpus
gpus = get_gpus()
before = [gpus.get_total_energy_consumption(i) for i in (0, 1)]
with open(os.environ["NVML_CLOCK"], "r+b") as clock:
    clock.write(struct.pack("d", 2.0))
after = [gpus.get_total_energy_consumption(i) for i in (0, 1)]
print(json.dumps([(b - a) / 1e3 for a, b in zip(before, after)]))
"""


def others_say(nvml, package, program):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; pip install {package}")
    environment = nvml.startup(SCENE) | {"NVML_CLOCK": str(nvml.clock.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def we_say(nvml):
    nvml.play(SCENE)
    with open_devices(None) as devices:
        return [(d, {k: a.value for k, a in d.read().items()}) for d in devices]


def test_nvitop_reads_what_we_read(nvml):
    theirs = others_say(nvml, "nvitop", NVITOP)
    for (device, ours), (uuid, used, milliwatts, busy, warm, held) in zip(
        we_say(nvml), theirs, strict=True
    ):
        assert (device.uuid, ours["device_used_bytes"]) == (uuid, used)
        assert ours["power_watts"] == milliwatts / 1e3
        assert (ours["kernel_time_percent"], ours["temperature_celsius"]) == (busy, warm)
        assert held == ([7 * GIB] if device.index == 0 else [])


def test_gpustat_reads_what_we_read(nvml):
    theirs = others_say(nvml, "gpustat", GPUSTAT)
    for (device, ours), (uuid, used, watts, busy, warm, held) in zip(
        we_say(nvml), theirs, strict=True
    ):
        assert (device.uuid, ours["device_used_bytes"] // 2**20) == (uuid, used)
        assert (ours["power_watts"], ours["kernel_time_percent"]) == (watts, busy)
        assert ours["temperature_celsius"] == warm
        assert held == ([7 * 1024] if device.index == 0 else [])


def test_zeus_counts_the_joules_that_we_count(nvml):
    theirs = others_say(nvml, "zeus", ZEUS)
    clock = nvml.play(SCENE)
    with open_devices(None) as devices:
        before = [device.energy_joules().value for device in devices]
        clock.set(2.0)
        ours = [d.energy_joules().value - b for d, b in zip(devices, before, strict=True)]
    assert theirs == ours == [600.0, 200.0]
