"""What is traced is what torch's profiler sees in the real step on the CPU.

A representative part of ``bench.predict.grid``, on narrow models; two on real widths.
"""

from dataclasses import replace

import pytest

from bench.predict import against_cpu
from bench.predict.against_cpu import Comparison, compare
from bench.predict.grid import AXES, line, request
from bench.predict.shapes import Shape
from bench.predict.trace import Request
from bench.records import RunSpec

pytestmark = pytest.mark.filterwarnings("ignore:.*_dynamo.*:", "ignore:.*deprecated.*:")

_KNOWN = {"load"}  # see the docstring of bench.predict.against_cpu
_KERNEL_BUFFERS = 64 << 10  # bytes, inside the CPU's attention kernel
_KNOWN_OF = {"lozo": {"perturb", "update"}}


NARROW = {
    "opt-125m": {"word_embed_proj_dim": 128, "ffn_dim": 512},
    "roberta-base": {"intermediate_size": 512},
    "llama-7b": {"intermediate_size": 512, "num_key_value_heads": 4},
}
"""Real vocabularies, so that peaks are where those of real models are; the rest is small."""


def narrow(method, model="opt-125m", attention="sdpa", **fields):
    """Two steps of a narrow model of two blocks."""
    given = {"task": "random_tokens", "steps": 2, "batch_size": 2, "seq_len": 16, "lr": 1e-4}
    given |= {"train_examples": 8, "anchor_examples": 4}
    if method == "linear_probe":
        given["tuning"] = "head"
    spec = RunSpec(method=method, model=model, **{**given, **fields})
    config = {"hidden_size": 128, "num_attention_heads": 4, **NARROW[model]}
    return Request(spec, emulate="cpu", shape=Shape(2, attention, config))


def agrees(found, method):
    """Check a comparison, phase by phase."""
    assert found.agrees, line(found)
    allowed = _KNOWN | _KNOWN_OF.get(method, set())
    for phase, error in found.phase_errors().items():
        buffers = phase == "forward" and -_KERNEL_BUFFERS < error < 0
        assert buffers or phase in allowed, line(found)


@pytest.mark.parametrize("method", AXES["methods"])
def test_every_method_takes_what_its_trace_says(method):
    agrees(compare(narrow(method)), method)


@pytest.mark.parametrize(
    ("method", "model", "dtype", "attention", "tuning"),
    [
        ("ft_adamw", "roberta-base", "bfloat16", "eager", "full"),
        ("ft_sgd", "llama-7b", "float32", "sdpa", "lora"),
        ("sparse_mezo", "llama-7b", "bfloat16", "eager", "full"),
        ("mezo_svrg", "roberta-base", "float32", "sdpa", "lora"),
        ("mezo", "opt-125m", "bfloat16", "eager", "prefix"),
    ],
)
def test_families_dtypes_attention_and_adapters_too(method, model, dtype, attention, tuning):
    agrees(compare(narrow(method, model, attention, dtype=dtype, tuning=tuning)), method)


@pytest.mark.parametrize(
    "fields",
    [
        {"micro_batch_size": 1, "batch_size": 3},
        {"checkpointing": True},
        {"task": "marker", "eval_examples": 16},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_first_order_runs_of_every_kind_do(fields):
    agrees(compare(narrow("ft_adamw", **fields)), "ft_adamw")


@pytest.mark.parametrize("restore", ["exact", "batched"])
def test_perturbed_copies_do(restore):
    agrees(compare(narrow("mezo", options={"restore": restore})), "mezo")


@pytest.mark.parametrize("method", ["mezo", "ft_adamw"])
def test_a_real_width_does_to_the_byte(method):
    found = compare(request(method, "opt", "float32", "sdpa", "full"))
    assert found.error_bytes == 0, line(found)
    assert found.peak > 200e6


def test_a_false_trace_is_seen(monkeypatch):
    # One more block than the real run: that is what a wrong trace looks like.
    real = against_cpu.trace
    monkeypatch.setattr(
        against_cpu,
        "trace",
        lambda one: real(Request(one.spec, 2, "cpu", replace(one.shape, layers=3))),
    )
    found = compare(narrow("mezo"))
    assert not found.agrees
    assert "forward" in found.phase_errors()
    assert line(found).startswith("DIFFERS mezo opt-125m float32")


def test_an_error_of_more_than_4_kib_is_one():
    one = narrow("mezo")
    assert Comparison(one, {"load": 4096}, {"load": 0}).agrees
    assert not Comparison(one, {"load": 4097}, {"load": 0}).agrees
    found = Comparison(one, {"load": 9, "update": 9}, {"load": 9000, "forward": 9000})
    assert found.phase_errors() == {"load": -8991, "forward": -9000}
