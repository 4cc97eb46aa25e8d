"""What is traced is what torch's profiler sees in the real step on the CPU.

A part of the grid of ``zometer bench prediction``, on narrow models: every method, every variant,
and every value of every axis once or more.
"""

from dataclasses import replace
from itertools import cycle

import pytest
import torch

from bench.predict import against_cpu, grid
from bench.predict.against_cpu import compare
from bench.predict.grid import FAMILIES, VARIANTS, known
from bench.records.prediction_check import (
    TRAINING,
    CheckCell,
    CheckedCell,
    KnownDifference,
    PredictionCheck,
)
from bench.tasks.kit import generation

pytestmark = pytest.mark.filterwarnings("ignore:.*_dynamo.*:", "ignore:.*deprecated.*:")

NARROW = {
    "opt": {"word_embed_proj_dim": 64, "ffn_dim": 256},
    "roberta": {"intermediate_size": 256},
    "llama": {"intermediate_size": 256, "num_key_value_heads": 4},
}
"""Less than real, but for vocabularies: so peaks are where those of real models are."""
SMALL = KnownDifference(
    why="Buffers inside 16-bit matrix products of the CPU: at the peak of narrow models alone.",
    phases=["forward", "backward"],
    dtypes=["bfloat16", "float16"],
    least_bytes=-(192 << 10),
    most_bytes=0,
)
MIXED = SMALL.model_copy(update={"dtypes": ["float32"], "variants": ["autocast"]})
JUDGE = PredictionCheck.model_construct(known=[*known(), SMALL, MIXED], cells=[])


@pytest.fixture(autouse=True)
def one_thread():
    """As the command's processes have: buffers inside products are one a thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def narrow(cell, **fields):
    config = {"hidden_size": 64, "num_attention_heads": 4}
    given = {"seq_len": 16, **dict(VARIANTS[cell.variant].fields), **fields}
    return grid.request(cell, {**config, **NARROW[cell.family]}, **given)


def compared(cell, **fields):
    found = compare(narrow(cell, **fields))
    return CheckedCell(cell=cell, traced=found.traced, real=found.real, seconds=0.0)


def representative():
    """Every method in turn on the next family, dtype, attention and tuning; then the variants."""
    axes = VARIANTS[TRAINING].axes()
    order = [
        (family, dtype, attention, tuning)
        for tuning in axes["tunings"]
        for attention in axes["attention"]
        for dtype in axes["dtypes"]
        for family in axes["families"]
    ]
    cells = zip(axes["methods"], cycle(order[::5] + order[1::5] + order[3::5]), strict=False)
    found = [
        CheckCell(method=method, family=family, dtype=dtype, attention=attention, tuning=tuning)
        for method, (family, dtype, attention, tuning) in cells
    ]
    for number, name in enumerate(VARIANTS):
        if name != TRAINING:
            several = grid.cells({}, [name])
            found.append(several[(7 * number) % len(several)])
    return found


CELLS = representative()


def test_every_value_of_every_axis_is_in_the_part_that_is_compared_here():
    axes = VARIANTS[TRAINING].axes()
    plain = [cell for cell in CELLS if cell.variant == TRAINING]
    assert [cell.method for cell in plain] == list(axes["methods"])
    for axis, name in (("families", "family"), ("dtypes", "dtype"), ("tunings", "tuning")):
        assert {getattr(cell, name) for cell in plain} == set(axes[axis])
    assert {cell.attention for cell in plain} == set(axes["attention"])
    pairs = {(cell.family, cell.tuning) for cell in plain}
    assert pairs == {(family, tuning) for family in FAMILIES for tuning in axes["tunings"]}
    assert {cell.variant for cell in CELLS} == set(VARIANTS)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name.replace(" ", "-"))
def test_a_run_takes_what_its_trace_says(cell, monkeypatch):
    monkeypatch.setattr(generation, "NEW_TOKENS", 4)
    found = compared(cell)
    assert found.peak_bytes > 1e6
    assert JUDGE.verdict(found) in ("agrees", "known"), (found.errors(), found.peak_bytes)


def test_a_real_width_does_to_the_byte():
    cell = CheckCell(method="mezo", family="opt", dtype="float32", attention="sdpa", tuning="full")
    found = compare(grid.request(cell))
    assert {p: e for p in found.real if (e := found.traced[p] - found.real[p])} == {}
    assert max(found.real.values()) > 200e6


def test_a_false_trace_is_seen(monkeypatch):
    # One more block than the real run: that is what a wrong trace looks like.
    real = against_cpu.trace
    monkeypatch.setattr(
        against_cpu,
        "trace",
        lambda one: real(replace(one, shape=replace(one.shape, layers=3))),
    )
    found = compared(CELLS[0])
    assert JUDGE.verdict(found) == "differs"
    assert "forward" in JUDGE.unexplained(found)
