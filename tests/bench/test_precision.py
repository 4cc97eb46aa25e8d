"""What rounding does is measured on runs where it is known."""

from __future__ import annotations

import pytest
import torch

from bench.precision import Precision, digest
from zo_core import Closure, Params, derive_seed, methods
from zo_core.base import no_span


def watched(dtype, steps=3, lr=1e-3, **options):
    w = torch.linspace(0.5, 1.0, 5000).to(dtype)
    params = Params([("w", w)])
    method = methods.build("mezo", **options)
    state, precision = method.init(params), Precision(params)
    loss = Closure(lambda: (w.double() ** 2).mean())
    for step in range(steps):
        with precision.step(no_span) as span:
            state, _ = method.step_(
                params, loss, state, seed=derive_seed(0, step), lr=lr, span=span
            )
    return {m.metric: m.value for m in precision.measurements()}, w


def test_textbook_restore_drifts_and_exact_restore_does_not():
    textbook, _ = watched(torch.bfloat16)
    exact, _ = watched(torch.bfloat16, restore="exact")
    assert 0.2 < textbook["estimate_changed_share"] < 0.8
    assert 1e-4 < textbook["estimate_drift_rms"] < 1e-2
    assert exact["estimate_changed_share"] == exact["estimate_drift_rms"] == 0


def test_small_updates_vanish_in_bfloat16_unless_rounded_stochastically():
    nearest, _ = watched(torch.bfloat16, restore="exact")
    stochastic, _ = watched(torch.bfloat16, 40, restore="exact", rounding="stochastic")
    full, _ = watched(torch.float64, restore="exact")
    assert 0.2 < nearest["update_rms"] / full["update_rms"] < 5
    assert nearest["update_rms"] < 1e-4  # half an ulp at 0.5 is 1e-3
    assert nearest["update_surviving_share"] == nearest["update_changed_share"] == 0
    assert stochastic["update_surviving_share"] == pytest.approx(1, abs=0.15)
    assert 0 < stochastic["update_changed_share"] < 0.2
    assert full["update_surviving_share"] == pytest.approx(1, abs=1e-6)
    assert full["update_changed_share"] > 0.99


def test_way_back_and_update_in_one_pass_are_told_apart():
    """What is seen of drift is the same; a small update survives, as it shares a rounding."""
    apart = {"weight_decay": 1e-12}  # has theta put back in a pass of its own
    for dtype, drift, asked in ((torch.float32, 4e-8, 1.7e-5), (torch.bfloat16, 2e-3, 2.2e-5)):
        for options in ({}, apart):
            found, _ = watched(dtype, 20, **options)
            assert found["estimate_drift_rms"] == pytest.approx(drift, rel=0.2)
            assert found["update_rms"] == pytest.approx(asked, rel=0.2)
    alone, _ = watched(torch.bfloat16, 40, **apart)
    merged, _ = watched(torch.bfloat16, 40)
    assert alone["update_surviving_share"] == alone["update_changed_share"] == 0
    assert 0.5 < merged["update_surviving_share"] < 3
    assert 0 < merged["update_changed_share"] < 0.02


def test_a_step_with_several_updates_has_no_drift_from_them():
    w = torch.linspace(0.5, 1.0, 5000)
    params = Params([("w", w)])
    method = methods.build("mezo_svrg_released", restore="exact")
    state, precision = method.init(params), Precision(params)

    def loss():
        return (w.double() ** 2).mean()

    for step in range(4):
        with precision.step(no_span) as span:
            state, _ = method.step_(
                params, Closure(loss, loss), state, seed=step, lr=1e-3, span=span
            )
    found = {m.metric: m.value for m in precision.measurements()}
    assert found["estimate_changed_share"] == found["estimate_drift_rms"] == 0
    assert found["update_changed_share"] > 0.9


def test_watching_changes_no_bit():
    _, seen = watched(torch.bfloat16, steps=3, rounding="stochastic")
    w = torch.linspace(0.5, 1.0, 5000).to(torch.bfloat16)
    params = Params([("w", w)])
    method = methods.build("mezo", rounding="stochastic")
    state = method.init(params)
    loss = Closure(lambda: (w.double() ** 2).mean())
    for step in range(3):
        state, _ = method.step_(params, loss, state, seed=derive_seed(0, step), lr=1e-3)
    assert torch.equal(w, seen)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_a_digest_tells_any_change_apart(dtype):
    def made(change=lambda w: w, name="w"):
        return digest(Params([(name, change(torch.arange(300_000.0).to(dtype).view(300, 1000)))]))

    def one_bit(w):
        words = {8: torch.int64, 4: torch.int32, 2: torch.int16}[w.itemsize]
        w.view(words).view(-1)[123_456] ^= 1
        return w

    same = made()
    assert same == made() and len(same) == 16
    assert same != made(one_bit)
    assert same != made(lambda w: w.flip(0))
    assert same != made(name="v")
