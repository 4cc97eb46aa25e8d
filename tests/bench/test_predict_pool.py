"""Jobs on processes of their own: whoever dies or dawdles is found out, and no other suffers."""

from __future__ import annotations

import os
import time

import pytest

from bench.predict import pool


def work(job: str) -> str:
    if job == "die":
        os._exit(9)
    if job == "hang":
        time.sleep(600)
    if job == "slow":
        time.sleep(0.3)
    return f"{job} by {os.getpid()}"


def begin() -> None:
    os.environ["BEGUN"] = "1"


def lost(job: str, why: pool.Why) -> str:
    return f"{job} lost: {why}"


HOW = pool.How(work, begin, lost)


def done(jobs: list[str], *, workers: int = 2, seconds: float = 60.0) -> list[str]:
    return list(pool.results(HOW, jobs, workers=workers, seconds=seconds))


def test_results_come_in_order_whoever_is_done_first() -> None:
    found = done(["slow", "a", "b", "c"])
    assert [one.split()[0] for one in found] == ["slow", "a", "b", "c"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_process_that_dies_costs_its_own_job_alone(workers: int) -> None:
    found = done(["slow", "die", "a", "slow", "die", "b"], workers=workers)
    assert found[1] == found[4] == "die lost: died"
    assert [found[i].split()[:2] for i in (0, 2, 3, 5)] == [
        ["slow", "by"], ["a", "by"], ["slow", "by"], ["b", "by"],
    ]  # fmt: skip


def test_a_job_that_takes_too_long_is_ended() -> None:
    begun = time.monotonic()
    found = done(["hang", "a"], workers=1, seconds=8.0)
    assert found[0] == "hang lost: too long" and found[1].startswith("a by")
    assert time.monotonic() - begun < 60


def test_a_process_is_replaced_after_so_many_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "_JOBS_OF_A_PROCESS", 2)
    found = done(["a", "b", "c", "d"], workers=1)
    pids = [one.split()[-1] for one in found]
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_nobody_is_left_when_the_asker_stops_early() -> None:
    made = pool.results(HOW, ["a", "hang"], workers=2, seconds=60.0)
    pid = int(next(made).split()[-1])
    made.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert list(pool.results(HOW, [], workers=2, seconds=1.0)) == []
