"""Tiny suites that run in seconds, and what is needed to run them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.cell import Cell
from bench.preload import heap_counter
from bench.records import RunSpec

ROOT = Path(__file__).parents[2]
TINY = """
title = "Tiny"
[run]
model = "opt-tiny"
task = "marker"
batch_size = 4
seq_len = 16
steps = 3
lr = 1e-3
eval_examples = 8
[axes]
method = ["mezo", "ft_sgd"]
"""

CUDA = """
[run]
model = "opt-tiny"
task = "random_tokens"
method = "mezo"
device = "cuda"
dtype = "float16"
steps = 2
lr = 1e-6
batch_size = 2
seq_len = 16
"""


@pytest.fixture
def tiny_suite(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the tiny suite, with lines added or replaced."""

    def write(extra: str = "", name: str = "tiny.toml", body: str = TINY) -> Path:
        path = tmp_path / name
        path.write_text(body + extra)
        return path

    return write


@pytest.fixture
def cuda_suite(tiny_suite: Callable[..., Path]) -> Path:
    """Return a suite of one run on a GPU, to be predicted."""
    return tiny_suite(name="small.toml", body=CUDA)


@pytest.fixture
def tiny_cell() -> Callable[..., Cell]:
    """Return a function that makes one cell of a run that takes about a second."""

    def make(**changes: object) -> Cell:
        fields: dict[str, object] = {
            "method": "mezo",
            "model": "opt-tiny",
            "task": "marker",
            "batch_size": 4,
            "seq_len": 16,
            "steps": 3,
            "lr": 1e-3,
            "eval_examples": 8,
        }
        return Cell(suite="tiny", group_title="main", spec=RunSpec(**{**fields, **changes}))

    return make


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a module's own folder for what is kept between runs."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what is kept there, and preload nothing of the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("LD_PRELOAD", raising=False)


@pytest.fixture(scope="session")
def counted() -> Callable[..., str]:
    """Return a function that runs a command with its heap counted, and returns what it printed."""

    def run(*command: str, **variables: str) -> str:
        environment = heap_counter.preloaded({**os.environ, "PYTHONPATH": str(ROOT), **variables})
        assert heap_counter.NOT_COUNTED not in environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0 and "ld.so" not in done.stderr, done.stdout + done.stderr
        return done.stdout

    return run
