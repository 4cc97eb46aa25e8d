"""Traces in a process of their own: the same log, little memory, errors in one line."""

import subprocess

import numpy as np
import pytest

from bench.predict import child
from bench.predict.shapes import Shape
from bench.predict.trace import Request, trace
from bench.records import RunSpec, UserError

OPT_175B = Shape(
    layers=96,
    config={
        "hidden_size": 12_288,
        "word_embed_proj_dim": 12_288,
        "ffn_dim": 49_152,
        "num_attention_heads": 96,
    },
)


def request(shape=None, **fields):
    """One step."""
    given = {"method": "mezo", "model": "opt-tiny", "task": "random_tokens", "steps": 1}
    spec = RunSpec(**{**given, "batch_size": 1, "seq_len": 16, **fields})
    return Request(spec, shape=shape or Shape())


def test_a_childs_log_is_the_same_and_is_kept(tmp_path, monkeypatch):
    here, there = trace(request()), child.trace(request(), cache=tmp_path)
    assert np.array_equal(here.nbytes, there.nbytes)
    assert here.op == there.op
    monkeypatch.setattr(subprocess, "run", None)  # a second child would fail
    again = child.trace(request(), cache=tmp_path)
    assert again.op == there.op
    assert child.digest(request()) != child.digest(request(seq_len=17))


def test_no_weights_are_in_memory_at_175_billion_parameters():
    log = child.trace(request(OPT_175B, model="opt-66b", dtype="float16"))
    assert log.at_peak()["weights"] > 2 * 174e9
    assert int(log.facts["peak rss"]) < 1.5 * 2**30


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model": "opt-tin"}, "Unknown model 'opt-tin'. Did you mean 'opt-tiny'?"),
        ({"seq_len": 100_000}, "seq_len = 100000 is longer than model 'opt-tiny' can take"),
    ],
)
def test_a_mistake_of_the_user_comes_back_as_one_line(fields, says):
    with pytest.raises(UserError, match=says.replace("?", r"\?")) as raised:
        child.trace(request(**fields))
    assert "\n" not in str(raised.value)


def test_a_child_that_dies_or_hangs_is_told(monkeypatch):
    with pytest.raises(UserError, match="took longer than 0 s"):
        child.trace(request(), wait_seconds=0.01)
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setattr(child.sys, "executable", "/bin/false")
    with pytest.raises(UserError, match="exit code 1: no word") as raised:
        child.trace(request())
    assert raised.value.exit_code == 3
