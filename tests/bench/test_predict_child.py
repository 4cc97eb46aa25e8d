"""Traces in a process of their own take little memory, whatever the model."""

from __future__ import annotations

import sys

import pytest

from bench.predict.predict import PEAK, predict
from bench.records import RunSpec


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is a Linux counter")
@pytest.mark.parametrize(
    ("method", "model", "weights"),
    # Of SGD torch has no fake kernel: once it ran the real one, on all weights and gradients.
    [("mezo", "opt-175b", 2 * 174e9), ("ft_sgd", "opt-1.3b", 2 * 1.3e9)],
)
def test_no_weights_are_in_memory(tmp_path, monkeypatch, method, model, weights):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = RunSpec(method=method, model=model, task="random_tokens", steps=1, lr=1e-6,
                   batch_size=1, seq_len=16, dtype="float16", device="cuda")  # fmt: skip
    found = predict(spec, full=True)
    assert found.whole and found.needs[0].components["weights"] > weights
    assert 2**27 < int(found.facts[PEAK]) < 1.5 * 2**30
