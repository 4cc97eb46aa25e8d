"""Steps and noise under pytest-benchmark: ``pytest tests/speed --benchmark-only``.

For somebody who tunes the engine, and compares with what was saved before
(``--benchmark-autosave``, ``--benchmark-compare``). Nothing timed is asserted: in an ordinary
test run each is taken once or twice, to see that it can be. Ratios that can be trusted on a busy
machine are those of ``zometer bench step``, which takes what it compares in turns.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bench.built import build
from bench.records.step_speed import StepCase
from bench.stepping import cases, passes
from bench.stepping.contenders import Bench, Ours, Textbook
from zo_core import Params, Term, directions

pytest.importorskip("pytest_benchmark")

METHODS = (
    "mezo",
    "mezo:distribution=rademacher",
    "mezo:restore=exact",
    "mezo:restore=batched",
    "mezo_svrg",
    "sparse_mezo",
    "lozo",
    "fzoo:restore=batched",
)


@pytest.fixture(scope="module")
def bench() -> Bench:
    case = StepCase(
        model="opt-tiny", dtype="float32", batch_size=2, seq_len=16, methods=["mezo"], threads=1
    )
    spec = cases.spec(case)
    return Bench.of(spec, build(spec))


def take(benchmark: Any, work: Any) -> None:
    benchmark.pedantic(work, rounds=5, warmup_rounds=1)


def test_forward_pass(benchmark: Any, bench: Bench):
    take(benchmark, bench.forward)


def test_textbook_step(benchmark: Any, bench: Bench):
    with torch.random.fork_rng():
        take(benchmark, Textbook(bench).take)


@pytest.mark.parametrize("token", METHODS)
def test_step(benchmark: Any, bench: Bench, token: str):
    before = [t.clone() for t in bench.built.params.tensors]
    take(benchmark, Ours(bench, token).take)
    after = bench.built.params.tensors
    assert all(bool(t.isfinite().all()) for t in after)
    assert not all(map(torch.equal, before, after))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["gaussian", "rademacher"])
def test_noise_pass(benchmark: Any, name: str, dtype: torch.dtype):
    # Above the caches where it is timed; small in an ordinary test run.
    count = passes.TENSOR_BYTES // dtype.itemsize if benchmark.enabled else 1 << 16
    params = Params([("noise", torch.zeros(count, dtype=dtype))])
    along = directions.build(name)
    take(benchmark, lambda: along.add_(params, [Term(1, 1e-3)]))
    assert params[0].tensor.float().std() > 0
