"""Peaks of the heap against known allocations, in a process of their own, and in a run."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import executor
from bench.cli import doctor
from bench.preload import heap_counter
from bench.trackers import Unavailable, host_tensors

MIB = 2**20
ROOT = Path(__file__).parents[2]
KNOWN = Path(__file__).with_name("heap_counter") / "known_allocations.py"
COMPILER = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
pytestmark = [
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is a way of Linux"),
    pytest.mark.skipif(COMPILER is None, reason="no C compiler is on the PATH"),
]


TOLERANCE = {
    "one 64 MiB": 0.001,
    "one 8 MiB": 0.001,
    "10 x 32 MiB": 0.001,
    "20,000 x 16 KiB": 0.03,  # the tensors' own objects are 2 %
    "2,000 x 64 KiB": 0.01,
    "3 x 64 MiB": 0.001,
    "3 x 64 MiB, one by one": 0.001,
    "ZO perturb": 0.002,
    "4 threads": 0.02,
    "numpy and bytes": 0.001,
    "backprop": 0.002,
}


@pytest.fixture(scope="module")
def known(cache: Path, counted: Callable[..., str]) -> dict[str, list[int]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        patch.delenv("LD_PRELOAD", raising=False)
        # as a memory run has it: every block of 64 KiB is then rounded up to whole pages
        return json.loads(counted(sys.executable, str(KNOWN), MALLOC_MMAP_THRESHOLD_="65536"))


@pytest.mark.parametrize("case", TOLERANCE)
def test_the_peak_is_the_known_bytes_every_time(known, case):
    expected, *peaks = known[case]
    assert expected > 0 and len(peaks) == 3
    for peak in peaks:
        assert abs(peak - expected) <= TOLERANCE[case] * expected, (case, peaks)


def test_what_was_grown_and_released_leaves_nothing(known):
    assert abs(known["left of a grown one"][1]) < 64 * 1024


def test_dead_cycles_do_not_count_as_live(known):
    assert abs(known["left of dead cycles"][1]) < 64 * 1024


def test_a_process_without_the_counter_says_why(monkeypatch):
    with pytest.raises(Unavailable, match="memory runs on the CPU are"):
        host_tensors.tracker("cpu")
    monkeypatch.setenv(heap_counter.NOT_COUNTED, "no C compiler")
    with pytest.raises(Unavailable, match="no C compiler"):
        host_tensors.tracker("cpu")


class _Deaf:
    """A library whose counter never moves, as under a torch with an allocator of its own."""

    def __init__(self) -> None:
        for name in ("live", "peak", "reset", "allocator"):
            setattr(self, f"zometer_heap_{name}", self._function(name))

    @staticmethod
    def _function(name: str):
        def function():
            return b"/lib/libc.so.6" if name == "allocator" else 1000

        return function


def test_a_counter_that_tensors_do_not_move_is_refused():
    with pytest.raises(Unavailable, match="moved the counter by 0"):
        host_tensors.HostTensors(_Deaf())


@pytest.mark.parametrize("change", [{"measure": "time"}, {"measure": "memory", "device": "cuda"}])
def test_other_runs_start_without_it(tiny_cell, change):
    variables = executor.environment_of(tiny_cell(**change).spec)
    assert "LD_PRELOAD" not in variables and heap_counter.NOT_COUNTED not in variables


def test_a_memory_run_records_exact_heap_bytes_in_every_phase(tiny_cell, tmp_path):
    cell = tiny_cell(measure="memory", method="ft_sgd", steps=2)
    (record,) = executor.run(tmp_path, [cell], lambda *_: None)
    assert record.status == "completed", record.reason
    found = {m.phase: m for m in record.measurements if m.metric == "host_allocated_peak_bytes"}
    assert {"run", "load", "train", "forward", "backward", "update", "evaluate"} <= set(found)
    assert {m.quality for m in found.values()} == {"exact"}
    assert record.model is not None
    weights, value = record.model.parameter_bytes, {p: m.value for p, m in found.items()}
    assert value["run"] == max(value.values())
    assert weights < value["load"] and 2 * weights < value["backward"] < value["run"] + 1
    assert record.value("host_allocated_baseline_bytes", "run") > 2**20
    assert record.environment is not None and "LD_PRELOAD" not in record.environment.variables


def test_the_doctor_says_that_memory_runs_have_it_or_what_to_install(monkeypatch):
    def found(device: str) -> tuple[str, str]:
        said = {f.what: f for f in doctor.examine(device)}[host_tensors.TITLE]
        return said.state, said.detail

    assert found("cpu") == ("exact", host_tensors.elsewhere("cpu"))

    def missing() -> Path:
        raise Unavailable("no compiler; install gcc")

    monkeypatch.setattr(heap_counter, "library", missing)
    assert found("cpu") == ("unavailable", "no compiler; install gcc")
