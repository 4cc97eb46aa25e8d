"""Seconds from operations and bytes, worked out by hand, and calibrated by what was measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.predict.gpus import find
from bench.predict.log import Log, Work
from bench.predict.roofline import (
    LAUNCH_SECONDS,
    Efficiency,
    Timed,
    calibrated,
    cost,
    seconds,
    step,
)
from bench.records import UserError

A100 = find("a100-80gb")
PEAK, BANDWIDTH = 312e12, 2039e9
SAME = Efficiency((0.5, 0.5, 0.5), (0.8, 0.8, 0.8))


def product(share: float = 1.0) -> Work:
    """Return work of a second at the peak of float16."""
    return Work({"float16": int(PEAK * share)}, 0, 1)


def sweep(share: float = 1.0) -> Work:
    """Return work of a second at the full bandwidth."""
    return Work({}, int(BANDWIDTH * share), 1)


def test_compute_and_traffic_are_divided_by_what_is_reached_of_the_peaks():
    assert seconds(product(), A100, SAME).expected == pytest.approx(2.0)
    assert seconds(sweep(), A100, SAME).expected == pytest.approx(1.25)
    band = seconds(product(), A100)
    assert (band.low, band.expected, band.high) == pytest.approx((1 / 0.7, 2.0, 1 / 0.3))
    band = seconds(sweep(), A100)
    assert (band.low, band.expected, band.high) == pytest.approx((1 / 0.9, 1.25, 1 / 0.6))


def test_what_overlaps_is_not_known_so_the_band_is_from_the_larger_to_the_sum():
    both = Work(product().flops, sweep().bytes, 1)
    found = seconds(both, A100, SAME)
    assert found.low == pytest.approx(2.0)
    assert found.expected == found.high == pytest.approx(3.25)


def test_each_dtype_runs_at_its_own_rate():
    assert seconds(Work({"float32": int(19.5e12)}, 0, 1), A100, SAME).expected == pytest.approx(2)
    mixed = Work({"float32": int(19.5e12), "float16": int(PEAK)}, 0, 1)
    assert seconds(mixed, A100, SAME).expected == pytest.approx(4.0)


def test_many_small_kernels_take_the_time_to_launch_them():
    found = seconds(Work({}, 1000, 10_000), A100)
    assert found.low == found.high == pytest.approx(10_000 * LAUNCH_SECONDS)


def traced(steps: int = 1) -> Log:
    log = Log(facts={"steps": str(steps)})
    log.work = {
        "load": sweep(100),
        "forward": product(0.5 * steps),
        "update": sweep(0.8 * steps),
        "evaluate": product(2.0),
    }
    return log


def test_a_step_is_its_phases_and_not_loading_or_evaluation():
    found = cost(traced(), A100, steps=1000, efficiency=SAME)
    assert found.phases["forward"].expected == pytest.approx(1.0)
    assert found.phases["load"].expected == pytest.approx(125.0)
    assert found.step.expected == pytest.approx(2.0)
    assert found.step == step(
        {k: v for k, v in traced().work.items() if k in ("forward", "update")}, A100, SAME
    )
    assert found.gpu_hours.expected == pytest.approx(2000 / 3600)


def test_a_trace_of_several_steps_tells_the_time_of_one():
    once, thrice = (cost(traced(n), A100, steps=10, efficiency=SAME) for n in (1, 3))
    assert thrice.step.expected == pytest.approx(once.step.expected)
    assert thrice.phases["forward"].expected == pytest.approx(once.phases["forward"].expected)
    assert thrice.phases["evaluate"] == once.phases["evaluate"]


def test_idle_cards_and_evaluations_are_paid_for():
    alone = cost(traced(), A100, steps=100, efficiency=SAME)
    many = cost(traced(), A100, steps=100, gpus=4, efficiency=SAME)
    assert many.step == alone.step
    assert many.gpu_hours.expected == pytest.approx(4 * alone.gpu_hours.expected)
    looked = cost(traced(), A100, steps=100, efficiency=SAME, evaluations=3)
    extra = looked.gpu_hours.expected - alone.gpu_hours.expected
    assert extra == pytest.approx(3 * 4.0 / 3600)


def test_a_price_is_given_where_the_user_gave_one():
    assert cost(traced(), A100, steps=1).price is None
    priced = cost(traced(), replace(A100, price_per_hour=2.0), steps=1800, efficiency=SAME)
    assert priced.price is not None and priced.price.expected == pytest.approx(2.0)


def test_a_dtype_that_the_card_has_no_units_for_is_remarked_on():
    log = Log()
    log.work = {"forward": Work({"bfloat16": 10**12}, 0, 1)}
    assert "no units for bfloat16" in cost(log, find("v100"), steps=1).notes[0]
    assert cost(log, A100, steps=1).notes == ()


def timed(work: dict[str, Work], real: Efficiency, times: float = 1.0) -> Timed:
    """Return a run whose phases took what they take at ``real``, or ``times`` as long."""
    return Timed(work, {n: times * seconds(w, A100, real).expected for n, w in work.items()})


def test_two_measured_phases_tell_both_efficiencies():
    work = {"forward": Work(product().flops, sweep(0.1).bytes, 1), "update": sweep()}
    real = Efficiency((0.4, 0.4, 0.4), (0.7, 0.7, 0.7))
    found = calibrated([timed(work, real)], A100)
    assert (found.mfu[1], found.mbu[1]) == pytest.approx((0.4, 0.7))
    assert (found.mfu[0], found.mfu[2]) == pytest.approx((0.4 / 0.85, 0.4 / 1.15))
    assert found.source == "1 timed run on NVIDIA A100 80GB"
    took = sum(timed(work, real).seconds.values())
    assert step(work, A100, found).expected == pytest.approx(took)


def test_runs_count_alike_however_long_they_are_and_widen_the_band():
    work = {"forward": Work(product().flops, sweep(0.1).bytes, 1), "update": sweep()}
    real = Efficiency((0.4, 0.4, 0.4), (0.6, 0.6, 0.6))
    long = {n: Work({d: 50 * f for d, f in w.flops.items()}, 50 * w.bytes, 1)
            for n, w in work.items()}  # fmt: skip
    runs = [timed(work, real, 0.75), timed(long, real, 1.25)]
    found = calibrated(runs, A100)
    assert found.source.startswith("2 timed runs")
    for run in runs:
        took, told = sum(run.seconds.values()), step(run.work, A100, found)
        assert told.low <= took <= told.high * 1.000001
    # Between the two: had the longer run counted by its seconds, it alone would.
    assert 0.4 / 1.25 * 1.05 < found.mfu[1] < 0.4 / 0.75 / 1.05


def test_one_measured_phase_scales_both_and_none_is_above_the_peak():
    work = {"forward": Work(product().flops, sweep(0.1).bytes, 1)}
    for times in (0.8, 1.0, 1.7):
        took = seconds(work["forward"], A100).expected * times
        found = calibrated([Timed(work, {"forward": took})], A100)
        assert seconds(work["forward"], A100, found).expected == pytest.approx(took)
        assert found.mfu[0] > found.mfu[1] > found.mfu[2]
    impossible = calibrated([Timed(work, {"forward": 1e-4})], A100)
    assert max(impossible.mfu + impossible.mbu) <= 1.0
    assert impossible.mfu[0] >= impossible.mfu[1] >= impossible.mfu[2] > 0


def test_a_phase_that_launches_kernels_tells_nothing_of_their_speed():
    real = Efficiency((0.4, 0.4, 0.4), (0.7, 0.7, 0.7))
    work = {"forward": Work(product().flops, sweep(0.1).bytes, 1), "update": sweep()}
    slow = {**work, "perturb": Work({}, 1000, 10_000)}
    took = {**timed(work, real).seconds, "perturb": 10_000 * LAUNCH_SECONDS * 1.5}
    found = calibrated([Timed(slow, took)], A100)
    assert (found.mfu[1], found.mbu[1]) == pytest.approx((0.4, 0.7))
    with pytest.raises(UserError, match="too short beside the launching of their kernels"):
        calibrated([Timed({"perturb": slow["perturb"]}, {"perturb": took["perturb"]})], A100)


def test_a_measurement_of_something_else_is_an_error_in_one_line():
    with pytest.raises(UserError, match=r"^Expected measured seconds .* got backward, too short"):
        calibrated([Timed({"forward": product()}, {"backward": 1.0})], A100)


def test_mezo_at_batch_1_spends_its_step_on_noise_and_weights_as_in_the_facts():
    # OPT-13B, fp16, 400 tokens, two forwards, from traced bytes.
    forwards = Work({"float16": int(2 * 2 * 12.85e9 * 400)}, int(127e9), 1)
    efficiency = Efficiency((0.6,) * 3, (0.8,) * 3)
    assert seconds(forwards, A100, efficiency).expected == pytest.approx(0.179, rel=0.1)
    perturb = Work({}, int(617e9), 1)
    assert seconds(perturb, A100, efficiency).expected == pytest.approx(0.402, rel=0.1)
