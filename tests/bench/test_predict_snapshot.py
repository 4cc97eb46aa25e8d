"""Snapshots that torch's own viewer reads, and real ones read, replayed and compared."""

from __future__ import annotations

import copy
import os
import pickle
import random
from dataclasses import replace

import pytest
from torch.cuda import _memory_viz

from bench.predict import snapshot as snapshots
from bench.predict.allocator import MIB, OutOfMemory, Settings
from bench.predict.log import Log
from bench.predict.replay import events, replay
from bench.predict.snapshot import compare, export, load, save, settings_of, to_log
from bench.records import UserError

NATIVE, EXPANDABLE = Settings(), Settings(expandable=True)
BOTH = pytest.mark.parametrize("settings", [NATIVE, EXPANDABLE], ids=["native", "expandable"])


def step(devices: int = 1) -> Log:
    rng, log, live = random.Random(3), Log(), []
    for device in range(devices):  # never freed
        log.alloc(30 * MIB, device, "forward", "aten.mm.default", "lm_head", "logits")
    for number in range(400):
        size = rng.choice((0, 512, 3000, 700_000, 2 * MIB, 7 * MIB, 45 * MIB))
        where = (number % devices, "forward", "aten.mm.default", "lm_head", "logits")
        live.append(log.alloc(size, *where))
        if len(live) > 25:
            log.free(live.pop(rng.randrange(len(live))))
    return log


@BOTH
def test_torch_s_viewer_accepts_it(settings, tmp_path):
    log = step()
    save(export(log, settings), tmp_path / "step.pickle")
    with open(tmp_path / "step.pickle", "rb") as file:
        found = pickle.load(file)
    for draw in (_memory_viz.trace_plot, _memory_viz.segment_plot):
        assert "snapshot.pickle" in draw(copy.deepcopy(found))
    _memory_viz.trace_plot(copy.deepcopy(found), plot_segments=True, filter_freed=True)
    # segsum adds up blocks and segments, and raises where they differ.
    summary = _memory_viz.segsum(found)
    assert f"segments: {len(found['segments'])}" in summary
    listing = _memory_viz.trace(found)
    assert "Device 0" in listing and "free completed" in listing


@BOTH
def test_segments_hold_at_the_end_what_the_log_left_live(settings):
    log = step(devices=2)
    found = export(log, settings)
    assert len(found["device_traces"]) == 2
    for device in (0, 1):
        segments = [s for s in found["segments"] if s["device"] == device]
        assert segments and all(s["is_expandable"] == settings.expandable for s in segments)
        assert sum(s["requested_size"] for s in segments) == int(log.live(device)[-1])
        blocks = [b for s in segments for b in s["blocks"] if b["state"] == "active_allocated"]
        assert {f["name"] for b in blocks for f in b["frames"]} == {
            "aten.mm.default",
            "lm_head",
            "forward",
        }
        for segment in segments:
            assert sum(b["size"] for b in segment["blocks"]) == segment["total_size"]


@BOTH
def test_an_exported_step_comes_back_as_the_same_requests(settings, tmp_path):
    log = step()
    save(export(log, settings), tmp_path / "step.pickle")
    back = to_log(load(tmp_path / "step.pickle"))
    there, again = events(log), events(back)
    assert len(there) == len(again) > 500
    assert [r.sizes for r in again.runs] == [r.sizes for r in there.runs]
    assert [r.kinds for r in again.runs] == [r.kinds for r in there.runs]
    assert back.op[0] == "aten.mm.default"


@BOTH
def test_the_model_agrees_with_its_own_export(settings):
    limited = replace(settings, capacity=replay(events(step()), settings).reserved_peak)
    for compared in compare(export(step(devices=2), limited)):
        assert compared.complete and compared.error == 0.0
        assert compared.real_peak == compared.model_peak >= compared.allocated_peak
        assert compared.real_end == compared.model_end


def test_the_comparison_sees_an_allocator_that_does_otherwise():
    real = export(step(), NATIVE)
    (other,) = compare(real, EXPANDABLE)
    assert other.model_peak != other.real_peak
    assert other.error == pytest.approx(other.model_peak / other.real_peak - 1)


@pytest.mark.parametrize(
    "settings",
    [NATIVE, EXPANDABLE, Settings(max_split=64 * MIB)],
    ids=["native", "expandable", "max_split"],
)
def test_a_snapshot_tells_the_settings_to_replay_it_with(settings):
    assert settings_of(export(step(), settings)) == settings
    assert settings_of({}) == NATIVE


def test_what_was_there_before_the_trace_began_comes_first():
    whole = export(step(), NATIVE)
    late = copy.deepcopy(whole)
    late["device_traces"][0] = late["device_traces"][0][300:]
    log = to_log(late)
    assert "before" in log.names("phase")
    # Whatever is cut off: at the end the same bytes are live.
    assert int(log.live(0)[-1]) == int(step().live(0)[-1])
    (compared,) = compare(late)
    assert not compared.complete
    (full,) = compare(whole)
    assert compared.real_end == full.real_end


def test_a_real_trace_s_peak_counts_what_was_released_meanwhile():
    log, limit = Log(), Settings(capacity=401 * MIB)
    log.free(log.alloc(400 * MIB, 0, "forward", "op", "", "other"))
    log.alloc(3000, 0, "forward", "op", "", "other")  # of the other pool: 400 MiB must go
    (compared,) = compare(export(log, limit), limit)
    assert (compared.real_peak, compared.real_end) == (400 * MIB, 2 * MIB)
    assert (compared.model_peak, compared.model_end) == (400 * MIB, 2 * MIB)
    actions = [e["action"] for e in export(log, limit)["device_traces"][0]]
    assert actions.count("segment_free") == 1 and actions.count("segment_alloc") == 2


def test_a_step_that_does_not_fit_is_not_exported():
    with pytest.raises(OutOfMemory):
        export(step(), Settings(capacity=50 * MIB))


class Harmful:
    def __reduce__(self):
        return (os.system, ("echo harm",))


def test_a_pickle_that_would_run_something_is_refused(tmp_path, capfd):
    path = tmp_path / "harm.pickle"
    path.write_bytes(pickle.dumps({"segments": [], "device_traces": [], "x": Harmful()}))
    with pytest.raises(UserError, match=r"system, where only plain data belongs"):
        load(path)
    assert "harm" not in capfd.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1]), pickle.dumps({})])
def test_what_is_no_snapshot_is_an_error_in_one_line(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"^Expected a torch memory snapshot at"):
        load(path)
    with pytest.raises(UserError, match="No such file"):
        load(tmp_path / "none")


def test_a_snapshot_without_a_trace_says_how_to_record_one():
    found = export(step())
    found["device_traces"] = [[]]
    found["segments"] = []
    with pytest.raises(UserError, match="_record_memory_history"):
        compare(found)
    assert set(snapshots.__all__) >= {"export", "load", "compare"}
