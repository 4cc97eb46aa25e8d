"""The library that counts the heap: every call, threads, forks, other allocators; its making."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.preload import heap_counter
from bench.trackers import Unavailable

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).with_name("heap_counter")
COMPILER = next((c for c in ("cc", "gcc", "clang") if shutil.which(c)), None)
pytestmark = [
    pytest.mark.usefixtures("own_cache"),
    pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD is a way of Linux"),
    pytest.mark.skipif(COMPILER is None, reason="no C compiler is on the PATH"),
]


def compiled(folder: Path, name: str, *flags: str) -> str:
    """Compile a program of ours, without the shortcuts that compilers take around malloc."""
    built = folder / name
    command = [str(COMPILER), "-O1", "-fno-builtin", "-o", str(built), str(PROGRAMS / f"{name}.c")]
    subprocess.run([*command, *flags, "-ldl"], check=True)
    return str(built)


def test_every_call_counts_to_the_byte_and_threads_and_forks_lose_none(tmp_path, counted):
    program = compiled(tmp_path, "every_call", "-pthread")
    once, again = (int(counted(program)) for _ in range(2))
    assert once == again  # what glibc keeps for its threads, not the blocks of the test


def test_more_large_blocks_than_the_table_holds_are_counted_as_they_are_held(tmp_path, counted):
    share, left = counted(compiled(tmp_path, "many_blocks")).split()
    assert 1.0 < float(share) < 1.002 and left == "0"


_TOLD = """
import ctypes, json, os, subprocess, sys
process = ctypes.CDLL(None)
process.zometer_heap_allocator.restype = ctypes.c_char_p
before = process.zometer_heap_live()
kept = bytearray(2**20)
seen = process.zometer_heap_live() - before
users = process.users_calls() if hasattr(process, "users_calls") else None
child = [sys.executable, "-S", "-c",
         "import ctypes; print(hasattr(ctypes.CDLL(None), 'zometer_heap_live'))"]
print(json.dumps({
    "preload": os.environ.get("LD_PRELOAD"),
    "allocator": process.zometer_heap_allocator().decode(), "users": users, "seen": seen,
    "child": subprocess.run(child, capture_output=True, text=True).stdout.strip(),
}))
"""


def test_programs_that_the_run_starts_are_not_counted(counted):
    told = json.loads(counted(sys.executable, "-S", "-c", _TOLD))
    assert told["preload"] is None and told["child"] == "False"
    assert "libc" in told["allocator"] and told["users"] is None


def test_what_the_user_preloads_stays_and_its_allocator_is_counted(tmp_path, counted):
    users = compiled(tmp_path, "allocator", "-shared", "-fPIC")
    told = json.loads(counted(sys.executable, "-S", "-c", _TOLD, LD_PRELOAD=users))
    assert told["preload"] == users == told["allocator"]
    assert told["users"] > 100 and 2**20 <= told["seen"] < 2**20 + 4096
    assert told["child"] == "False"


def test_a_dlsym_that_allocates_does_not_send_it_round_in_circles(tmp_path, counted):
    if os.confstr("CS_GNU_LIBC_VERSION") < "glibc 2.34":
        pytest.skip("this glibc is an old one itself")
    old = compiled(tmp_path, "old_dlsym", "-shared", "-fPIC")
    told = json.loads(counted(sys.executable, "-S", "-c", _TOLD, LD_PRELOAD=old))
    assert told["seen"] >= 2**20


def test_it_is_built_once_however_many_ask_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(3) as pool:
        (path,) = set(pool.map(lambda _: heap_counter.library(), range(3)))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    built = path.stat().st_mtime_ns
    monkeypatch.setenv("PATH", "")  # no compiler is asked for what is there
    assert heap_counter.library().stat().st_mtime_ns == built


def test_another_source_is_another_file(tmp_path, monkeypatch):
    before = heap_counter.library()
    changed = tmp_path / "heap_counter.c"
    changed.write_text(heap_counter._SOURCE.read_text() + "/* changed */\n")
    monkeypatch.setattr(heap_counter, "_SOURCE", changed)
    assert heap_counter.library() != before


def why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    for name, value in {"XDG_CACHE_HOME": str(tmp_path / "c"), **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Unavailable) as told:
        heap_counter.library()
    assert not list((tmp_path / "c").rglob("*.so")), "what does not work was kept"
    variables = heap_counter.preloaded({"A": "1"})
    said = variables.pop(heap_counter.NOT_COUNTED)
    assert variables == {"A": "1"} and said[:40] == str(told.value)[:40]
    assert "\n" not in said
    return said


def test_without_a_compiler_it_says_what_to_install(tmp_path, monkeypatch):
    said = why_not(tmp_path, monkeypatch, PATH=str(tmp_path), CC="")
    assert "install a C compiler" in said and "gcc" in said


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'fatal error: dlfcn.h: No such file' >&2\nexit 4\n")
    broken.chmod(0o755)
    said = why_not(tmp_path, monkeypatch, CC=str(broken))
    assert "ended with 4: fatal error: dlfcn.h" in said


def test_a_library_that_the_loader_refuses_is_not_kept(tmp_path, monkeypatch):
    wrong = tmp_path / "cc"
    wrong.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho no library >"$2"\n')
    wrong.chmod(0o755)
    assert "cannot be preloaded" in why_not(tmp_path, monkeypatch, CC=str(wrong))


def test_a_cache_that_cannot_be_written_or_named_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    said = why_not(tmp_path, monkeypatch, XDG_CACHE_HOME=str(tmp_path / "file"))
    assert "XDG_CACHE_HOME" in said
    said = why_not(tmp_path, monkeypatch, XDG_CACHE_HOME=str(tmp_path / "a b"))
    assert "LD_PRELOAD can't name" in said


def test_its_source_is_shipped():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["bench"]
    assert heap_counter._SOURCE in {f for p in patterns for f in (ROOT / "bench").glob(p)}
