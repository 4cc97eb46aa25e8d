"""CUDA_VISIBLE_DEVICES as CUDA reads it; torch's own reading is the oracle where it has one."""

from __future__ import annotations

import pytest
import torch
from scripted import ONE_GPU

from bench.devices import mask
from bench.devices.mask import Board, Instance
from bench.devices.nvml import open_devices

UUIDS = ["GPU-aaaa1111", "GPU-aabb2222", "GPU-cccc3333", "GPU-dddd4444"]
ALIKE = [Board(i, uuid, "H100") for i, uuid in enumerate(UUIDS)]
MIXED = [*ALIKE[:3], Board(3, UUIDS[3], "A10")]

MASKS = {
    "0": [0],
    "2,0": [2, 0],
    "0,1,2,3": [0, 1, 2, 3],
    " 1 , 3": [1, 3],
    "1gpu2,2ampere": [1, 2],
    "+1": [1],
    "": [],
    " ": [],
    "-1": [],
    "1,-1,2": [1],
    "0,9,1": [0],
    "9": [],
    "0,,1": [0],
    "none": [],
    "NoDevFiles": [],
    "1,1": [],
    "0,1,0": [],
    "GPU-aaaa1111": [0],
    "GPU-cc": [2],
    "GPU-dddd,GPU-aab": [3, 1],
    "GPU-aa": [],
    "GPU-cc,GPU-aa,GPU-d": [2],
    "GPU-zz,GPU-cc": [],
    "GPU-cc,1": [2],
    "1,GPU-cc": [1],
    "GPU-cc,GPU-cccc": [],
    "GPU-cc,GPU-cc": [],
    "gpu-cccc3333": [],
}


@pytest.mark.parametrize("visible", MASKS)
def test_a_mask_shows_what_cuda_shows(visible):
    shown = mask.select(visible, ALIKE, None)
    assert [UUIDS.index(uuid) for uuid in shown.uuids] == MASKS[visible]


@pytest.mark.parametrize("visible", MASKS)
def test_the_expected_is_what_torch_says(visible, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    parsed = torch.cuda._parse_visible_devices()
    if parsed and isinstance(parsed[0], str):
        parsed = torch.cuda._transform_uuid_to_ordinals(parsed, UUIDS)
    there = []
    for number in parsed:
        if number >= len(UUIDS):
            break  # torch's list is cut by the device count elsewhere
        there.append(number)
    assert there == MASKS[visible]


def test_no_mask_shows_all():
    assert mask.select(None, ALIKE, None) == mask.Selection(tuple(UUIDS))


def test_an_entry_that_ends_the_list_is_told():
    (cut,) = mask.select("0,9,1", ALIKE, None).doubts
    assert cut.name == "mask_cut" and "'9' names no device" in cut.text
    (twice,) = mask.select("1,1", ALIKE, None).doubts
    assert "twice" in twice.text and UUIDS[1] in twice.text
    assert mask.select("", ALIKE, None).doubts == ()


@pytest.mark.parametrize("visible", [None, "0", "1,0"])
def test_numbers_among_different_models_are_ambiguous(visible):
    (doubt,) = mask.select(visible, MIXED, None).doubts
    assert doubt.name == "mapping_ambiguous" and doubt.severity == "invalid"
    assert "A10, H100" in doubt.text and "CUDA_DEVICE_ORDER=PCI_BUS_ID" in doubt.text
    assert mask.select(visible, MIXED, "FASTEST_FIRST").doubts == (doubt,)
    assert mask.select(visible, MIXED, "PCI_BUS_ID").doubts == ()


@pytest.mark.parametrize("visible", ["GPU-aaaa", ""])
def test_names_among_different_models_are_clear(visible):
    assert mask.select(visible, MIXED, None).doubts == ()


CUT = Board(1, "GPU-bbbb", "A100", True, (Instance("MIG-11", 1, 0), Instance("MIG-22", 2, 0)))
WITH_MIG = [Board(0, "GPU-aaaa", "A100"), CUT]


@pytest.mark.parametrize(
    ("visible", "shown"),
    [
        ("MIG-22", ["MIG-22"]),
        ("MIG-1", ["MIG-11"]),
        ("MIG-GPU-bbbb/2/0", ["MIG-22"]),
        ("MIG-GPU-bbbb/3/0", []),
        ("MIG-", []),
        ("MIG-33", []),
        ("MIG-22,GPU-aaaa", ["MIG-22"]),
        ("1", ["MIG-11"]),
        ("GPU-bb", ["MIG-11"]),
        ("0", ["GPU-aaaa"]),
    ],
)
def test_mig_instances_are_found_by_name_and_by_their_board(visible, shown):
    assert list(mask.select(visible, WITH_MIG, None).uuids) == shown


def test_a_process_gets_one_instance_and_the_choice_is_in_doubt():
    chosen = mask.select("MIG-22,MIG-11", WITH_MIG, None)
    assert chosen.uuids == ("MIG-22",)
    assert [doubt.name for doubt in chosen.doubts] == ["mapping_ambiguous"]
    assert mask.select(None, [CUT], None).uuids == ("MIG-11",)
    empty = Board(0, "GPU-aaaa", "A100", True)
    assert mask.select("0", [empty], None).uuids == ()


MIG = """
gpu name=NVIDIA_A100 uuid=GPU-aaaa mig=1
mig 0 name=NVIDIA_A100_MIG_1g.10gb uuid=MIG-11 gi=1 ci=0 total=10000 reserved=10
mig 0 name=NVIDIA_A100_MIG_2g.20gb uuid=MIG-22 gi=2 ci=0 total=20000 reserved=20
at 0 0 mem 9000
at 0 0 power 250
at 0 0 temp 50
at 2 0 mem 5000
proc 0 0 0 - 2
pmem 0 4000
proc 0 4321 0 - 1
pmem 0 3000
"""


def test_an_instance_has_its_memory_and_processes_but_no_power(nvml, monkeypatch):
    nvml.play(MIG)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-22")
    with open_devices() as devices:
        (device,) = devices
        assert device.is_mig and (device.uuid, device.index) == ("MIG-22", 0)
        found = device.read()
        assert found["device_used_bytes"].value == 5000
        assert found["device_total_bytes"].value == 20000
        assert found["process_used_bytes"].value == 4000
        assert device.others() == ()
        for name in ("power_watts", "power_instant_watts", "energy_joules"):
            assert found[name].flag == "energy_not_attributable" and found[name].value is None
        assert found["kernel_time_percent"].value is None
        assert device.energy_joules().flag == "energy_not_attributable"
        assert "MIG" in device.accounting_peak().reason


def test_the_environment_decides_and_an_argument_overrides_it(nvml, monkeypatch):
    nvml.play(f"{ONE_GPU}\ngpu name=NVIDIA_A10 uuid=GPU-bbbb")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    with open_devices() as devices:
        assert [(d.name, d.ordinal, d.index) for d in devices] == [("NVIDIA A10", 0, 1)]
        assert [doubt.name for doubt in devices.doubts] == ["mapping_ambiguous"]
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    with open_devices() as devices:
        assert devices.doubts == ()
    with open_devices(None) as devices:
        assert len(devices) == 2
    with open_devices("GPU-bbbb,GPU-aaaa") as devices:
        assert [(d.ordinal, d.index) for d in devices] == [(0, 1), (1, 0)]


@pytest.mark.parametrize("visible", ["", "7", "GPU-ffff", "0,0", "-1"])
def test_a_mask_that_shows_nothing_is_a_reason(nvml, visible):
    nvml.play(ONE_GPU)
    with open_devices(visible) as devices:
        assert list(devices) == []
        reason = f"CUDA_VISIBLE_DEVICES={visible} shows none of 1 GPUs"
        assert devices.unavailable.reason == reason
    assert nvml.inits == 0


def test_a_driver_without_a_gpu_is_a_reason(nvml):
    nvml.play("driver 580.95.05")
    with open_devices() as devices:
        assert devices.unavailable.reason == "NVML lists no GPU on this machine"
