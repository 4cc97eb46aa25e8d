"""How many threads a run takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import threads


def _write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text + "\n", encoding="utf-8")
    return root


def test_the_users_number_comes_first_and_openmps_variable_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "usable", lambda root: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert threads.count(5) == 5
    assert threads.count(None) == 3
    for unusable in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", unusable)
        assert threads.count(None) == 64
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads.count(None) == 64


def test_two_threads_of_one_core_count_once(tmp_path: Path) -> None:
    place = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    siblings = {0: "0,2", 2: "0,2", 1: "1,3", 3: "1,3"}
    _write(tmp_path, {place.format(cpu): text for cpu, text in siblings.items()})
    assert threads.physical(tmp_path, [0, 1, 2, 3]) == 2
    assert threads.physical(tmp_path, [0, 2]) == 1
    assert threads.physical(tmp_path, [1, 7, 8]) == 3  # nothing is known of 7 and 8


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/a/b", "sys/fs/cgroup/a/cpu.max": "150000 100000"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/cpu.max": "800000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "max 100000",
            },
            8,
        ),
        # In a container: the path is the host's, the group's files are at the top.
        ({"proc/self/cgroup": "0::/kubepods/x", "sys/fs/cgroup/cpu.max": "400000 100000"}, 4),
        (
            {
                "proc/self/cgroup": "3:memory:/m\n2:cpu,cpuacct:/d\n0::/",
                "sys/fs/cgroup/cpu,cpuacct/d/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu,cpuacct/d/cpu.cfs_period_us": "50000",
            },
            5,
        ),
        (
            {"proc/self/cgroup": "1:cpu:/", "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1"},
            float("inf"),
        ),
        ({}, float("inf")),
    ],
)
def test_the_least_quota_of_a_group_and_those_around_it(
    tmp_path: Path, files: dict[str, str], cores: float
) -> None:
    assert threads.quota(_write(tmp_path, files)) == cores


def test_a_quota_below_the_cores_is_rounded_down_and_never_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert threads.usable(tmp_path) == 8
    group = {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "250000 100000"}
    assert threads.usable(_write(tmp_path, group)) == 2
    assert threads.usable(_write(tmp_path, {"sys/fs/cgroup/cpu.max": "50000 100000"})) == 1
