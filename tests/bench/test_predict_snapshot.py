"""Snapshots that torch's own viewer reads, and real ones read, replayed and compared."""

from __future__ import annotations

import copy
import json
import os
import pickle
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
from torch.cuda import _memory_viz
from typer.testing import CliRunner, Result

from bench.cli import app
from bench.cli.asked import spec_of
from bench.predict import snapshot as snapshots
from bench.predict import snapshot_run
from bench.predict.allocator import MIB, OutOfMemory, Settings
from bench.predict.log import Log
from bench.predict.predict import predict
from bench.predict.replay import events, replay
from bench.predict.snapshot import End, compare, export, load, save, settings_of, to_log
from bench.predict.snapshot_run import Wanted
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
        assert compared.complete and compared.agrees and compared.error == 0.0
        assert compared.real_peak == compared.model_peak >= compared.requested_peak
        assert compared.real.reserved >= compared.real.allocated > 0 < compared.real.segments


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
    assert compared.real == full.real


def test_a_real_trace_s_peak_counts_what_was_released_meanwhile():
    log, limit = Log(), Settings(capacity=401 * MIB)
    log.free(log.alloc(400 * MIB, 0, "forward", "op", "", "other"))
    log.alloc(3000, 0, "forward", "op", "", "other")  # of the other pool: 400 MiB must go
    (compared,) = compare(export(log, limit), limit)
    assert (compared.real_peak, compared.real) == (400 * MIB, End(2 * MIB, 3072, 1))
    assert (compared.model_peak, compared.model) == (400 * MIB, End(2 * MIB, 3072, 1))
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


RUN = ("--model", "opt-tiny", "--method", "mezo", "--batch", "2", "--seq", "16")


def zometer(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["snapshot", *map(str, arguments)])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Snapshots of one run that was really traced: native and with expandable segments."""
    folder = tmp_path_factory.mktemp("snapshots")
    for name, more in (("native", ()), ("expandable", ("--expandable",))):
        done = zometer("export", *RUN, *more, "--out", folder / f"{name}.pickle")
        assert done.exit_code == 0, done.output
        assert "mezo on opt-tiny in float16" in done.output and "trace_plot" in done.output
    return folder


@pytest.mark.parametrize("kind", ["native", "expandable"])
def test_a_run_written_as_a_snapshot_is_agreed_with_to_the_byte(exported, kind):
    path = exported / f"{kind}.pickle"
    done = zometer("compare", path, "--json")
    assert done.exit_code == 0, done.output
    (line,) = map(json.loads, done.output.splitlines())
    assert line["agrees"] and line["complete"] and line["events"] > 300
    assert line["real"] == line["model"] and line["real"]["segments"] > 0
    words = zometer("compare", path).output
    assert f"{kind} segments. The model agrees to the byte." in words
    with open(path, "rb") as file:
        found = pickle.load(file)
    names = {f["name"] for e in found["device_traces"][0] for f in e["frames"]}
    assert {"forward", "perturb", "cuBLAS workspace"} <= names
    for draw in (_memory_viz.trace_plot, _memory_viz.segment_plot):
        assert "snapshot.pickle" in draw(copy.deepcopy(found))


def test_its_peak_is_the_reserved_memory_that_is_predicted(exported, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = spec_of(
        model="opt-tiny", method="mezo", dtype="fp16", batch_size=2, seq_len=16, tuning="full",
        options={}, autocast=None, checkpointing=False,
    )  # fmt: skip
    needs = predict(spec, full=True).needs[0]
    (native,) = compare(load(exported / "native.pickle"))
    (growing,) = compare(load(exported / "expandable.pickle"))
    assert native.real_peak == needs.reserved
    assert growing.real_peak == needs.reserved_expandable
    assert native.requested_peak > needs.traced  # the workspace is among the requests


def test_a_snapshot_of_a_suite_is_of_one_run(tmp_path):
    out = tmp_path / "one.pickle"
    several = zometer("export", "quickstart", "--only", "memory--*", "--out", out)
    assert isinstance(several.exception, UserError)
    assert "matches 12 runs of 'quickstart', a snapshot is of one: " in str(several.exception)
    both = zometer("export", "quickstart", *RUN, "--out", out)
    neither = zometer("export", "--out", out)
    for done in (both, neither):
        assert isinstance(done.exception, UserError)
        assert "a suite" in str(done.exception) and "\n" not in str(done.exception)
    assert not out.exists()


def test_a_run_that_does_not_fit_the_gpu_is_told(tmp_path, monkeypatch):
    # In a process of its own else: what is traced there is put in its place.
    monkeypatch.setattr(snapshot_run, "traced", lambda request: (step(), None))
    request = SimpleNamespace(spec=SimpleNamespace(method="mezo", model="opt-tiny"))
    out = tmp_path / "one.pickle"
    for capacity, fits in ((500 * MIB, True), (300 * MIB, False)):
        out.unlink(missing_ok=True)
        wanted = Wanted(SimpleNamespace(request=request), Settings(False, capacity), 1 << 20, out)
        found = snapshot_run._outcome(wanted)
        assert isinstance(found, snapshot_run.Written) is fits and out.exists() is fits
    assert str(found).startswith("Method 'mezo' on 'opt-tiny' does not fit: ")
    assert "--expandable" in str(found) and found.exit_code == 2


def test_segments_tell_that_they_are_expandable_where_no_setting_does():
    found = export(step(), EXPANDABLE)
    del found["allocator_settings"]
    assert settings_of(found) == EXPANDABLE


def test_a_trace_of_several_streams_is_told(tmp_path):
    found = export(step(), NATIVE)
    next(e for e in found["device_traces"][0] if e["action"] == "alloc")["stream"] = 7
    found["segments"][0]["total_size"] += 2 * MIB
    save(found, tmp_path / "two.pickle")
    done = zometer("compare", tmp_path / "two.pickle")
    assert "of 2 streams" in done.output and "-2,097,152 B" in done.output


def test_a_capacity_that_the_trace_does_not_fit_is_an_error_in_one_line(tmp_path):
    save(export(step(), NATIVE), tmp_path / "step.pickle")
    done = zometer("compare", tmp_path / "step.pickle", "--capacity", "0.05")
    assert isinstance(done.exception, UserError)
    assert str(done.exception).startswith("Expected a capacity that holds the trace, got ")


def test_a_trace_with_half_an_entry_is_no_snapshot(tmp_path):
    found = export(step(), NATIVE)
    del next(e for e in found["device_traces"][0] if e["action"] == "alloc")["size"]
    save(found, tmp_path / "half.pickle")
    with pytest.raises(UserError, match="an entry without size"):
        load(tmp_path / "half.pickle")
