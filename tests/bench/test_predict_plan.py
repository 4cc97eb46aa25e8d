"""Several GPUs: the rules that estimate them, and what is never estimated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from bench.predict.calibration import Band
from bench.predict.figures import Figures, PhaseFigures
from bench.predict.gpus import GIB, find
from bench.predict.log import OUTSIDE_BLOCKS, Work
from bench.predict.plan import layout_of, plan, spread
from bench.predict.prediction import Prediction, of_dict
from bench.records import ModelFacts, RunSpec

LAYERS = 64


def prediction(weights: float, rest: float, *, trains: bool = False, **extra: float) -> Prediction:
    """Return a prediction of so many GiB of weights and of what comes and goes."""
    kept = {name: int(size * GIB) for name, size in extra.items()}
    parts = {"weights": int(weights * GIB), **kept, "activations": int(rest * GIB)}
    live = sum(parts.values())
    phase = "backward" if trains else "forward"
    outside = Band(GIB // 4, GIB // 2, GIB)
    figures = Figures(
        device=0, traced=live, allocated=live, reserved=live, reserved_expandable=live, least=live,
        least_expandable=live, process=outside + live, process_expandable=outside + live,
        workspace=0, temporaries=0, outside=outside,
        phases=(PhaseFigures(phase, live, live, live, live, parts),), components=parts,
        peak_phase=phase,
    )  # fmt: skip
    spec = RunSpec(method="mezo", model="opt-66b", task="random_tokens", steps=2, lr=1e-6)
    facts: dict[str, Any] = dict(name="opt-66b", family="opt", source="random", parameters=1)
    model = ModelFacts(**facts, trained_parameters=1, parameter_bytes=2)
    return Prediction(
        spec=spec, emulate="cuda", model=model, layers=LAYERS, traced_layers=(LAYERS,), steps=2,
        figures={"default": (figures,)}, work={phase: Work({"float16": 10**15}, 10**11, 10)},
        facts={"torch version": "2"},
    )  # fmt: skip


def test_what_fits_one_gpu_is_traced_and_not_estimated() -> None:
    made = plan(prediction(24, 1), find("a100-80gb"), steps=10)
    assert made is not None
    assert (made.fit.count, made.quality, made.layout) == (1, "traced", "one GPU")


def test_what_was_carried_on_from_fewer_layers_is_estimated_on_one_gpu_too() -> None:
    made = plan(replace(prediction(24, 1), traced_layers=(2, 4, 6)), find("a100-80gb"), steps=10)
    assert made is not None and (made.fit.count, made.quality) == (1, "estimated")


def test_weights_outside_of_blocks_stay_gathered_in_a_step_but_not_in_the_update() -> None:
    plain = prediction(24, 4, trains=True, gradients=24, state=48)
    facts = {OUTSIDE_BLOCKS: str(4 * GIB)}
    held = spread(replace(plain, facts=facts), find("a100-80gb"), 4)
    assert held is not None
    assert held[0].components["weights"] == 6 * GIB + 3 * 20 * GIB // LAYERS + 2 * 4 * GIB
    phases = tuple(replace(p, phase="update") for p in plain.needs[0].phases)
    figures = {"default": (replace(plain.needs[0], phases=phases),)}
    updating = spread(replace(plain, facts=facts, figures=figures), find("a100-80gb"), 4)
    assert updating is not None and updating[0].components["weights"] == 6 * GIB


def test_full_sharding_costs_what_it_sends_where_nothing_hides_it() -> None:
    gpu = find("a100-80gb")
    one = prediction(24, 4, trains=True, gradients=24, state=48)
    made, alone = plan(one, gpu, steps=1000, counts=(4,)), one.cost(gpu, steps=1000, gpus=4)
    assert made is not None and made.layout == "FSDP"
    seconds = 3 * 24 * GIB * (3 / 4) / 300e9
    assert made.cost.step.low == alone.step.low
    assert made.cost.step.high - alone.step.high == pytest.approx(seconds)
    assert made.cost.step.expected - alone.step.expected == pytest.approx(seconds / 2)
    hours = seconds * 1000 * 4 / 3600
    assert made.cost.gpu_hours.high - alone.gpu_hours.high == pytest.approx(hours)


def test_a_zeroth_order_method_is_spread_by_layers() -> None:
    one = prediction(122.4, 1)
    made = plan(one, find("a100-80gb"), steps=10)
    assert made is not None
    assert (made.fit.count, made.quality, made.layout) == (2, "estimated", "layer pipeline")
    share = made.needs[0].components
    assert share["weights"] == -(-int(122.4 * GIB) // 2) + -(-int(122.4 * GIB) // LAYERS)
    assert share["activations"] == GIB  # it goes from device to device
    assert made.needs[1].components["weights"] == -(-int(122.4 * GIB) // 2)
    assert len(made.needs) == 2


def test_a_first_order_method_is_sharded_with_its_states_and_a_communicator() -> None:
    one = prediction(24, 4, trains=True, gradients=24, state=48)
    needs = spread(one, find("a100-80gb"), 4)
    assert needs is not None and layout_of(one, 4) == "FSDP"
    held = needs[0].components
    assert held["state"] == 12 * GIB and held["activations"] == 4 * GIB
    assert held["weights"] == 6 * GIB + 3 * 24 * GIB // LAYERS
    pipeline = spread(prediction(24, 4), find("a100-80gb"), 4)
    assert pipeline is not None  # and no process of it talks over NCCL
    assert needs[0].outside.expected > pipeline[0].outside.expected + GIB // 2


def test_autocast_copies_are_not_kept_of_all_weights_where_they_are_sharded() -> None:
    plain = prediction(24, 14, trains=True)
    mixed = replace(plain, spec=plain.spec.model_copy(update={"autocast": "bfloat16"}))
    held = [spread(p, find("a100-80gb"), 4) for p in (plain, mixed)]
    first, second = (needs[0].components["activations"] for needs in held if needs)
    assert (first, second) == (14 * GIB, 2 * GIB)


def test_cards_that_wait_cost_as_those_that_work() -> None:
    one, gpu = prediction(122.4, 1), find("a100-80gb")
    made = plan(one, gpu, steps=1000)
    assert made is not None
    alone = one.cost(gpu, steps=1000).gpu_hours
    assert made.cost.gpu_hours.expected == 2 * alone.expected


def test_there_is_no_plan_for_what_no_machine_holds() -> None:
    assert plan(prediction(100, 100), find("t4"), steps=1) is None
    assert spread(prediction(10, 1), find("t4"), LAYERS + 1) is None


def test_a_prediction_is_read_back_as_it_was_written() -> None:
    one = prediction(24, 1)
    assert of_dict(one.as_dict()) == one
