"""Tiny suites that run in seconds, and what is needed to run them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.cell import Cell
from bench.records import RunSpec

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


@pytest.fixture
def tiny_suite(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes the tiny suite, with lines added or replaced."""

    def write(extra: str = "", name: str = "tiny.toml", body: str = TINY) -> Path:
        path = tmp_path / name
        path.write_text(body + extra)
        return path

    return write


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
