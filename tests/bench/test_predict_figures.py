"""The four figures, on logs whose figures can be worked out by hand; and the constants in them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from bench.predict import calibration
from bench.predict.allocator import MIB
from bench.predict.calibration import Band
from bench.predict.figures import all_figures, figures
from bench.predict.kernels import FORMULAS, events_with, table, temporaries, workspaces
from bench.predict.log import Log
from bench.records import UserError

DEFAULT, HOPPER = 8_519_680, 32 * MIB
FLASH = "aten._scaled_dot_product_flash_attention_backward.default"


def step(backward: bool = True, device: int = 0) -> Log:
    """Return a step of training: 100 MiB of weights, 30 of activations, 100 of gradients."""
    log = Log()
    log.alloc(100 * MIB, device, "load", "aten.empty.memory_format", "", "weights")
    held = log.alloc(30 * MIB, device, "forward", "aten.addmm.default", "fc1", "activations")
    logits = log.alloc(10 * MIB, device, "forward", "aten.mm.default", "lm_head", "logits")
    if backward:
        log.free(logits, "backward")
        log.alloc(100 * MIB, device, "backward", "aten.mm.default", "fc1", "gradients")
        log.free(held, "backward")
    return log


def test_the_four_figures_of_a_forward_are_what_torch_would_count():
    found = figures(step(backward=False))
    assert found.traced == 140 * MIB
    assert (found.workspace, found.temporaries) == (DEFAULT, 0)
    # 8.1 MiB of workspace leave 11.9 of their 20 MiB segment, where the 10 MiB of logits go.
    assert found.allocated == 140 * MIB + DEFAULT
    assert found.reserved == (100 + 30 + 20) * MIB
    # A range of 20 MiB pages: 148.1 MiB are eight pages.
    assert found.reserved_expandable == 160 * MIB
    assert found.process == calibration.read().context + found.reserved
    assert found.process.low < found.process.expected < found.process.high


def test_phases_and_components_say_where_the_peak_is():
    found = figures(step())
    assert found.peak_phase == "backward"
    by_phase = {p.phase: p for p in found.phases}
    assert list(by_phase) == ["load", "forward", "backward"]
    assert by_phase["forward"].traced == 140 * MIB
    assert by_phase["forward"].components["logits"] == 10 * MIB
    assert by_phase["load"].components == {"weights": 100 * MIB}
    in_mib = {name: size // MIB for name, size in found.components.items()}
    assert in_mib == {"weights": 100, "gradients": 100, "activations": 30}
    assert sum(found.components.values()) == found.traced == max(p.traced for p in found.phases)
    assert max(p.allocated for p in found.phases) == found.allocated
    assert max(p.reserved for p in found.phases) == found.reserved


def test_the_named_component_is_the_largest_that_comes_and_goes():
    assert figures(step(backward=False)).peak_component == "activations"
    log = Log()
    log.alloc(1000 * MIB, 0, "load", "aten.empty", "", "weights")
    log.alloc(9 * MIB, 0, "forward", "aten.mm", "", "logits")
    assert figures(log).peak_component == "weights"  # 0.9 % is not worth a word
    log.alloc(9 * MIB, 0, "forward", "aten.mm", "", "activations")
    assert figures(log).peak_component == "logits"


def test_the_workspace_is_counted_once_a_thread_and_depends_on_the_gpu():
    forward, trained = step(backward=False), step()
    spaces = calibration.read()
    hopper = replace(spaces, workspace={"default": spaces.workspace_of("hopper")})
    assert figures(forward, calibration=hopper).workspace == HOPPER
    assert figures(forward).workspace == DEFAULT
    assert figures(trained).workspace == 2 * DEFAULT  # the backward thread has its own handle
    assert [extra.row for extra in workspaces(trained, 0, 5)] == [1, 4]
    nothing = Log()
    nothing.alloc(MIB, 0, "load", "aten.empty", "", "weights")
    assert figures(nothing).workspace == 0


def test_a_kernel_s_temporaries_come_and_go_with_its_operation():
    log = Log()
    log.alloc(100 * MIB, 0, "load", "aten.empty", "", "weights")
    for _ in range(3):
        log.alloc(20 * MIB, 0, "backward", FLASH, "attn", "gradients")
    found = figures(log)
    assert found.traced == 160 * MIB
    # Twice the first of the three gradients: 40 MiB, gone afterwards.
    assert (found.temporaries, found.allocated) == (40 * MIB, 200 * MIB)
    extras = temporaries(log, 0)
    assert [(extra.row, extra.nbytes, extra.stays) for extra in extras] == [(4, 40 * MIB, False)]
    asked = events_with(log, 0, extras)
    assert len(asked) == len(log) + 2
    assert sum(k for run in asked.runs for k in run.kinds) == 4  # what stays is the log's own


def test_two_calls_of_one_kernel_have_temporaries_each():
    log = Log()
    for size in (20 * MIB, 40 * MIB):
        log.free(log.alloc(size, 0, "backward", FLASH, "attn", "gradients"))
    assert [extra.nbytes for extra in temporaries(log, 0)] == [40 * MIB, 80 * MIB]


def test_every_kernel_of_the_table_is_an_operation_of_torch_with_a_known_formula():
    assert table()
    for name, entry in table().items():
        assert entry.formula in FORMULAS and entry.why and entry.source and not entry.verified
        assert hasattr(torch.ops.aten, name.removeprefix("aten.")), name


def test_fragments_make_the_least_capacity_smaller_than_what_is_reserved():
    log = Log()
    for size in range(30, 60, 2):  # each too large for the hole before it
        log.free(log.alloc(size * MIB, 0, "forward", "aten.add", "", "activations"))
    found = figures(log)
    assert found.traced == 58 * MIB
    assert found.reserved == sum(range(30, 60, 2)) * MIB
    assert 58 * MIB <= found.least <= 66 * MIB
    assert found.reserved_expandable == 60 * MIB


def test_devices_are_told_apart_and_communicators_are_outside():
    log = step(backward=False)
    log.alloc(50 * MIB, 1, "load", "aten.empty", "", "weights")
    first, second = all_figures(log, ranks=2)
    assert (first.device, second.device) == (0, 1)
    assert (first.traced, second.traced) == (140 * MIB, 50 * MIB)
    alone = figures(log)
    assert first.process.low == alone.process.low
    assert first.process.expected - alone.process.expected == 544 * MIB
    eight = figures(log, ranks=8)
    assert eight.process.high - alone.process.high == 688 * MIB
    assert eight.process.expected - alone.process.expected == 688 * MIB


def test_figures_are_plain_data_for_a_record():
    found = json.loads(json.dumps(figures(step()).as_dict()))
    assert found["peak_phase"] == "backward" and found["peak_component"] == "gradients"
    assert found["process"]["low"] < found["process"]["high"]
    assert [p["phase"] for p in found["phases"]] == ["load", "forward", "backward"]


def test_constants_have_sources_and_none_is_called_verified_yet():
    constants = calibration.read()
    assert set(constants.sources) == {"context", "workspace", "nccl"}
    assert all(len(text) > 40 for text in constants.sources.values())
    assert not any(constants.verified.values())
    assert constants.communicators(1) == Band(0, 0, 0)


def test_a_calibration_file_is_read_as_it_was_written(tmp_path):
    refitted = calibration.refitted(calibration.read(), [400, 100, 300], 'H100, "driver" 570')
    assert refitted.context == Band(100, 300, 400)
    assert refitted.verified["context"] and not refitted.verified["nccl"]
    calibration.write(refitted, tmp_path / "mine.toml")
    assert calibration.read(tmp_path / "mine.toml") == refitted
    found = figures(step(), calibration=calibration.read(tmp_path / "mine.toml"))
    assert found.process.high == found.reserved + 400


def test_a_calibration_without_a_constant_is_an_error_in_one_line(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[context]\nlow = 1\nexpected = 2\nhigh = 3\n")
    with pytest.raises(UserError, match=r"^Expected a calibration file .* got KeyError"):
        calibration.read(path)
    with pytest.raises(UserError, match="FileNotFoundError"):
        calibration.read(tmp_path / "none.toml")
    with pytest.raises(UserError, match="at least one measurement"):
        calibration.refitted(calibration.read(), [], "nothing")


def test_an_out_of_memory_message_tells_the_context():
    message = (
        "CUDA out of memory. Tried to allocate 160.00 MiB. GPU 0 has a total capacity of 14.75 "
        "GiB of which 73.06 MiB is free. Process 82243 has 14.67 GiB memory in use. Of the "
        "allocated memory 14.55 GiB is allocated by PyTorch, and 23.38 MiB is reserved by "
        "PyTorch but unallocated."
    )
    assert calibration.context_in(message) / MIB == pytest.approx(
        14.67 * 1024 - 14.55 * 1024 - 23.38
    )
    with pytest.raises(UserError, match="out-of-memory message"):
        calibration.context_in("CUDA out of memory.")


def test_a_replay_needs_no_torch():
    names = "figures fits gpus roofline snapshot published calibration"
    code = f"import sys\nfor name in '{names}'.split(): __import__(f'bench.predict.{{name}}')\n"
    code += "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
