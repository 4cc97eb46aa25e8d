"""Host readings: of this process, of one that has ended, of folders that play the kernel."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from bench.devices import rapl
from bench.devices.answer import Answer, Unavailable
from bench.sampler.host import Host
from bench.sampler.rapl import Rapl

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc: Linux only")


def answers(readings):
    return {reading.metric: reading.answer for reading in readings}


@linux
def test_memory_of_known_size_is_seen_and_has_no_file():
    host = Host(os.getpid())
    before = answers(host.process())
    block = bytearray(os.urandom(1)) * (64 << 20)
    after = answers(host.process())
    host.close()
    for name in ("rss_bytes", "rss_anon_bytes"):
        risen = after[name].value - before[name].value
        assert risen == pytest.approx(len(block), rel=0.02), name
    assert after["rss_anon_bytes"].value < after["rss_bytes"].value


@linux
def test_work_of_known_length_is_seen():
    host = Host(os.getpid())
    before, begin = answers(host.full()), time.process_time()
    while time.process_time() - begin < 0.3:
        pass
    after = answers(host.full())
    host.close()
    spent = after["cpu_seconds"].value - before["cpu_seconds"].value
    assert spent == pytest.approx(0.3, abs=0.05)
    assert after["machine_busy_seconds"].value - before["machine_busy_seconds"].value >= 0.25
    assert after["cpu_seconds"].quality == "exact"


@linux
def test_a_process_that_has_ended_is_unavailable_and_its_number_is_nobody_elses():
    program = [sys.executable, "-c", "print('up', flush=True); input()"]
    child = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        host = Host(child.pid)
        running = answers(host.process())
    finally:
        child.communicate(b"\n")
    assert running["rss_bytes"].value > 1 << 20
    gone = answers(host.process())
    host.close()
    assert all(isinstance(answer, Unavailable) and answer.reason for answer in gone.values())


def test_the_kernels_lines_are_read_as_it_writes_them(tmp_path):
    page, tick = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "statm").write_text("5000 300 100 1 0 200 0\n")
    fields = " ".join(str(n) for n in range(3, 53))
    (tmp_path / "7" / "stat").write_text(f"7 (a ) b (c) S {fields.split(' ', 1)[1]}\n")
    lines = ["cpu  99 99 99 9999 99 99 99 99 99 99", "cpu0 10 20 30 4000 50 6 7 8 9 9"]
    lines += ["cpu1 5000 0 0 0 0 0 0 0 0 0", "cpu2 1 1 1 4000 1 1 1 1 1 1", "intr 5"]
    (tmp_path / "stat").write_text("\n".join(lines))
    host = Host(7, proc=tmp_path)
    host._linux, host.cpus = True, frozenset({0, 2, 900})
    found = answers(host.full())
    host.close()
    assert found["rss_bytes"].value == 300 * page
    assert found["rss_anon_bytes"].value == 200 * page
    assert found["cpu_seconds"].value == (14 + 15) / tick
    assert found["machine_busy_seconds"].value == (10 + 20 + 30 + 6 + 7 + 5) / tick
    host.cpus = frozenset({900})
    assert "nothing of the CPUs" in answers(host.machine())["machine_busy_seconds"].reason


@linux
def test_the_cpus_are_those_that_the_process_may_run_on(monkeypatch):
    allowed = sorted(os.sched_getaffinity(0))
    program = f"import os; os.sched_setaffinity(0, [{allowed[-1]}]); print(flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        child.stdout.readline()
        assert Host(child.pid).cpus == {allowed[-1]}
    finally:
        child.communicate(b"\n")
    assert Host(child.pid).cpus == set(range(os.cpu_count()))  # gone: all that there are


def test_elsewhere_psutil_is_asked():
    host = Host(os.getpid())
    host._linux = False
    found = answers(host.full())
    assert found["rss_bytes"].value > 1 << 20 and found["cpu_seconds"].value > 0
    assert found["rss_anon_bytes"].value is None
    host = Host(2**22 + 5)
    host._linux = False
    assert "can't be read" in answers(host.process())["rss_bytes"].reason


def package(root, number, name, microjoules, limit=1_000_000_000):
    folder = root / f"intel-rapl:{number}"
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    return folder


def test_rapl_counts_joules_over_the_turn_of_its_counter(tmp_path):
    folder = package(tmp_path, "0", "package-0", 999_000_000)
    (one,) = rapl.packages(tmp_path)
    read = [one.energy_joules().value]
    for microjoules in (999_900_000, 400_000, 900_000_000, 100_000):
        (folder / "energy_uj").write_text(f"{microjoules}\n")
        read.append(one.energy_joules().value)
    assert read == pytest.approx([0.0, 0.9, 1.4, 901.0, 1001.1])


def test_rapl_takes_packages_alone(tmp_path):
    package(tmp_path, "0", "package-0", 1)
    package(tmp_path, "1", "package-1", 1)
    package(tmp_path, "0:0", "core", 1)
    package(tmp_path, "2", "psys", 1)
    assert [p.name for p in rapl.packages(tmp_path)] == ["package-0", "package-1"]


def test_rapl_says_why_it_has_nothing(tmp_path):
    assert "virtual" in Rapl(root=tmp_path).unavailable.reason
    folder = package(tmp_path, "0", "package-0", 5)
    source = Rapl(root=tmp_path)
    assert source.unavailable is None and len(source.streams(0.05)) == 1
    assert [r.answer for r in source.full()] == [Answer(0.0, "J", "RAPL energy_uj", "exact")]
    (folder / "energy_uj").write_text("no number\n")
    assert isinstance(source.full()[0].answer, Unavailable)
    (folder / "energy_uj").unlink()
    assert isinstance(source.full()[0].answer, Unavailable)


def test_rapl_that_root_alone_may_read_names_the_file(tmp_path, monkeypatch):
    package(tmp_path, "0", "package-0", 5)

    def refuse(path, *arguments, **options):
        raise PermissionError(13, "Permission denied")

    (one,) = rapl.packages(tmp_path)
    monkeypatch.setattr(type(tmp_path), "read_text", refuse)
    answer = one.energy_joules()
    assert answer.value is None and "root" in answer.reason and "energy_uj" in answer.reason
