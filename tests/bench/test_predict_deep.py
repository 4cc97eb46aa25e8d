"""Deep models from shallow ones: exact where it says so, refused where it can't be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.predict.calibration import Band
from bench.predict.deep import NotAffine, figures_at, work_at
from bench.predict.figures import Figures, PhaseFigures
from bench.predict.log import Work
from bench.predict.predict import Job, _predicted
from bench.predict.shapes import Shape
from bench.predict.trace import Request
from bench.records import RunSpec

GIB = 1 << 30


def figures(layers: int, *, logits: int = 50, over: int = 7) -> Figures:
    """Return figures of a model whose blocks take 100 each."""
    weights = 30 + 100 * layers
    load = PhaseFigures("load", weights, weights, weights, weights, {"weights": weights})
    parts = {"weights": weights, "logits": logits}
    live = sum(parts.values())
    beyond = over * layers
    forward = PhaseFigures("forward", live, live + 8, live + beyond, live + beyond, parts)
    outside = Band(1, 2, 3)
    return Figures(
        device=0, traced=live, allocated=live + 8, reserved=live + 8 + beyond,
        reserved_expandable=live + 8 + beyond, least=live + layers, least_expandable=live + layers,
        process=outside + (live + 8 + beyond), process_expandable=outside + (live + 8 + beyond),
        workspace=8, temporaries=0, outside=outside, phases=(load, forward), components=parts,
        peak_phase="forward",
    )  # fmt: skip


def test_a_line_is_carried_on_to_the_byte() -> None:
    deep = figures_at(40, {n: figures(n) for n in (2, 4, 6)})
    assert deep == figures(40)


def test_live_bytes_that_bend_are_refused() -> None:
    bent = {n: figures(n, logits=50 if n < 6 else 51) for n in (2, 4, 6)}
    with pytest.raises(NotAffine):
        figures_at(40, bent)


def test_a_peak_that_moves_to_another_phase_is_refused() -> None:
    moved = {n: figures(n) for n in (2, 4, 6)}
    moved[6] = replace(moved[6], peak_phase="load")
    with pytest.raises(NotAffine):
        figures_at(40, moved)


def test_reserved_memory_never_falls_below_what_was_seen() -> None:
    falling = {n: figures(n, over=7 - n) for n in (2, 4, 6)}
    deep = figures_at(40, falling)
    last = falling[6]
    assert deep.reserved - deep.allocated >= last.reserved - last.allocated > 0


def test_work_is_carried_on_too() -> None:
    traced = {n: {"forward": Work({"float16": 10 * n}, 5 + n, 3 * n)} for n in (2, 4, 6)}
    assert work_at(64, traced) == {"forward": Work({"float16": 640}, 69, 192)}


@pytest.mark.parametrize("method", ["mezo", "mezo_adam", "mezo_svrg", "zero_shot"])
def test_a_deep_model_is_predicted_from_shallow_ones_as_if_all_were_traced(method: str) -> None:
    spec = RunSpec(
        method=method, model="opt-tiny", task="random_tokens", steps=2, lr=1e-6, batch_size=2,
        seq_len=32, dtype="bfloat16", train_examples=8, anchor_examples=4,
    )  # fmt: skip
    request = Request(spec, shape=Shape(layers=30))
    quick, whole = (_predicted(Job(request, full=full)) for full in (False, True))
    assert quick.traced_layers == (2, 4, 6) and whole.whole and not quick.whole
    assert quick.model.parameters == whole.model.parameters
    for one, other in zip(quick.needs, whole.needs, strict=True):
        assert (one.traced, one.allocated) == (other.traced, other.allocated)
        assert one.components == other.components and one.peak_phase == other.peak_phase
        assert [(p.phase, p.allocated) for p in one.phases] == [
            (p.phase, p.allocated) for p in other.phases
        ]
    assert quick.work == whole.work


def test_a_first_order_method_is_always_traced_whole() -> None:
    spec = RunSpec(
        method="ft_sgd", model="opt-tiny", task="random_tokens", steps=1, lr=1e-6, batch_size=1,
        seq_len=8,
    )  # fmt: skip
    assert _predicted(Job(Request(spec, shape=Shape(layers=26)), full=False)).whole
