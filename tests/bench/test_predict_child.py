"""Traces in a process of their own take little memory, whatever the model."""

from __future__ import annotations

import sys

import pytest

from bench.predict.predict import PEAK, predict
from bench.records import RunSpec


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is a Linux counter")
def test_no_weights_are_in_memory_at_175_billion_parameters(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    spec = RunSpec(method="mezo", model="opt-175b", task="random_tokens", steps=1, lr=1e-6,
                   batch_size=1, seq_len=16, dtype="float16", device="cuda")  # fmt: skip
    found = predict(spec, full=True)
    assert found.whole and found.needs[0].components["weights"] > 2 * 174e9
    assert 2**27 < int(found.facts[PEAK]) < 1.5 * 2**30
