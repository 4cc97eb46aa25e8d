"""The log of a traced step: what is live when, and for what."""

import numpy as np
import pytest

from bench.predict.log import Log, Work


def example() -> Log:
    """Weights, a forward pass that frees its scratch, a gradient that stays."""
    log = Log()
    log.alloc(1000, 0, "load", "empty", "", "weights")
    scratch = log.alloc(300, 0, "forward", "mm", "lm_head", "logits")
    log.alloc(50, 1, "forward", "mm", "", "activations")
    log.free(scratch)
    grad = log.alloc(200, 0, "backward", "mm", "", "activations")
    log.relabel(grad, "gradients")
    return log


def test_a_phase_begins_at_what_it_finds():
    assert example().peaks_by_phase(0) == {"load": 1000, "forward": 1300, "backward": 1200}
    assert example().live_peak(0) == 1300
    assert example().live_peak(1) == 50


def test_a_phase_in_which_nothing_is_allocated_has_a_peak():
    log = example()
    log.enter("update")
    assert log.peaks_by_phase(0)["update"] == 1200
    assert log.at_peak(0, "update") == {"weights": 1000, "gradients": 200}


def test_what_is_live_at_a_peak_is_told_by_component():
    log = example()
    assert log.at_peak(0) == {"weights": 1000, "logits": 300}
    assert log.at_peak(0, "backward") == {"weights": 1000, "gradients": 200}
    assert log.at_peak(1) == {"activations": 50}


def test_a_block_is_freed_once():
    log = example()
    with pytest.raises(ValueError, match="Block 1 is not live"):
        log.free(1)
    with pytest.raises(ValueError, match="Block 99 is not live"):
        log.free(99)


def test_a_free_belongs_to_the_phase_it_happens_in():
    log = example()
    log.free(0, "update")
    assert log.phase[-1] == "update"
    assert log.component[-1] == "weights"
    assert log.peaks_by_phase(0)["load"] == 1000


def test_a_saved_log_is_read_as_it_was(tmp_path):
    log = example()
    log.facts["run"] = "a run"
    log.work["forward"] = Work({"bfloat16": 12}, 34, 5)
    log.enter("update")
    log.save(tmp_path / "log.npz")
    read = Log.load(tmp_path / "log.npz")
    for name in ("kind", "block", "nbytes", "device"):
        assert np.array_equal(read.column(name), log.column(name))
    for name in ("phase", "op", "module", "component"):
        assert getattr(read, name) == getattr(log, name)
    assert (read.work, read.facts) == (log.work, log.facts)
    assert read.peaks_by_phase() == log.peaks_by_phase()
    read.free(0)  # it can be written on
    assert read.live()[-1] == 200
