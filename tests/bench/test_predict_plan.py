"""Several GPUs: the rules that estimate them, and what is never estimated."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.cli import capacity as capacity_command
from bench.cli import fit as fit_command
from bench.predict import calibration, parallel_traces
from bench.predict.calibration import Band
from bench.predict.figures import Figures, PhaseFigures
from bench.predict.gpus import GIB, find
from bench.predict.log import OUTSIDE_BLOCKS, Work
from bench.predict.parallel import Parallel
from bench.predict.parallel_rules import layout_of, spread, stages
from bench.predict.parallel_traces import Traces
from bench.predict.plan import plan
from bench.predict.prediction import Prediction, of_dict
from bench.records import ModelFacts, RunSpec, UserError

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
    size = parts["weights"]
    model = ModelFacts(**facts, trained_parameters=1, parameter_bytes=size)
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
    assert share["weights"] == pytest.approx(int(122.4 * GIB) / 2, abs=1)
    assert share["activations"] == GIB  # it goes from device to device
    assert len(made.needs) == 2


def test_blocks_are_whole_and_the_first_device_has_the_embedding_too() -> None:
    assert stages(weights=70, outside=6, layers=LAYERS, count=2) == (35, 35)
    assert stages(weights=64 + 9, outside=9, layers=LAYERS, count=4) == (9 + 10, 19)
    facts = {OUTSIDE_BLOCKS: str(8 * GIB)}
    one = replace(prediction(72, 1, state=36), facts=facts)
    held = spread(one, find("a100-80gb"), 2)
    assert held is not None
    assert [each.components["weights"] // GIB for each in held] == [36, 36]
    assert [each.components["state"] // GIB for each in held] == [18, 18]


def test_a_first_order_method_is_sharded_with_its_states_and_a_communicator() -> None:
    one = prediction(24, 4, trains=True, gradients=24, state=48)
    needs = spread(one, find("a100-80gb"), 4)
    assert needs is not None and layout_of(one, 4) == "FSDP"
    held = needs[0].components
    assert held["state"] == 12 * GIB and held["activations"] == 4 * GIB
    assert held["weights"] == 6 * GIB + 3 * 24 * GIB // LAYERS
    block = 24 * GIB / LAYERS
    assert needs[0].reserved == pytest.approx(needs[0].allocated + 3.5 * block, abs=1)
    assert needs[0].process == needs[0].outside + needs[0].reserved
    pipeline = spread(prediction(24, 4), find("a100-80gb"), 4)
    assert pipeline is not None  # and no process of it talks over NCCL
    assert needs[0].outside.expected > pipeline[0].outside.expected + GIB // 2


def over(one: Prediction, count: int, each: float) -> Prediction:
    """Return what a trace over so many devices is, of so many GiB each."""
    live = int(each * GIB)
    own = replace(
        one.needs[0], allocated=live, reserved=live, reserved_expandable=live, least=live
    )
    own = own.beside(one.needs[0].outside)
    parallel = Parallel("fsdp" if "backward" in one.work else "pipeline", count)
    figures = {"default": tuple(replace(own, device=i) for i in range(count))}
    return replace(one, figures=figures, parallel=parallel)


def test_a_trace_over_several_gpus_goes_before_the_rules() -> None:
    one, gpu = prediction(122.4, 1), find("a100-80gb")
    made = plan(one, gpu, steps=10, traced={2: over(one, 2, 70)})
    assert made is not None and (made.fit.count, made.quality, made.doubtful) == (2, "traced", ())
    assert made.needs[0].allocated == 70 * GIB
    made = plan(one, gpu, steps=10, traced={2: over(one, 2, 90)})  # the rules say it fits
    assert made is not None and (made.fit.count, made.quality) == (4, "estimated")


def test_a_plan_is_in_doubt_until_it_is_traced_and_so_is_one_that_just_misses() -> None:
    gpu = find("a100-80gb")
    made = plan(prediction(122.4, 1), gpu, steps=10)
    assert made is not None and made.doubtful == (2,)
    near, far = prediction(154, 3), prediction(220, 3)
    counts = [made.doubtful for one in (near, far) if (made := plan(one, gpu, steps=10))]
    assert counts == [(2, 4), (4,)]


def test_the_fewest_gpus_are_traced_until_a_trace_holds_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, gpu, constants = prediction(154, 3), find("a100-80gb"), calibration.read()
    asked: list[int] = []

    def predict(spec: RunSpec, *, full: bool, parallel: Parallel) -> Prediction:
        asked.append(parallel.count)
        return over(one, parallel.count, 76 if parallel.count == 2 else 40)

    monkeypatch.setattr(parallel_traces, "predict", predict)
    said: list[str] = []
    slow = replace(one, facts={"seconds": "60"})
    traces = Traces(slow, constants, said.append)
    made = traces.settled(lambda known: plan(one, gpu, steps=1, traced=known), [gpu])
    assert made is not None and (made.fit.count, made.quality) == (2, "traced")
    assert asked == [2, 4] and said[0].startswith(
        "Tracing layer pipeline over 2 GPUs: about 1 min"
    )


@pytest.mark.parametrize(("rest", "counts"), [(6.0, [16]), (40.0, [])])
def test_where_no_plan_holds_a_run_the_one_that_nearly_does_is_traced(
    rest: float, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, gpu = prediction(1200, rest), find("a100-80gb")
    asked: list[int] = []

    def predict(spec: RunSpec, *, full: bool, parallel: Parallel) -> Prediction:
        asked.append(parallel.count)
        return over(one, parallel.count, 70)

    monkeypatch.setattr(parallel_traces, "predict", predict)
    assert plan(one, gpu, steps=1) is None
    traces = Traces(one, calibration.read(), lambda text: None)
    made = traces.settled(lambda known: plan(one, gpu, steps=1, traced=known), [gpu])
    assert asked == counts and (made is not None) == bool(counts)


def test_a_plan_that_can_not_be_traced_stays_an_estimate_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def predict(spec: RunSpec, *, full: bool, parallel: Parallel) -> Prediction:
        raise UserError("no kernel")

    monkeypatch.setattr(parallel_traces, "predict", predict)
    one, gpu = prediction(122.4, 1), find("a100-80gb")
    traces = Traces(one, calibration.read(), lambda text: None)
    made = traces.settled(lambda known: plan(one, gpu, steps=1, traced=known), [gpu])
    assert made is not None and made.quality == "estimated"
    assert traces.reasons == {2: "no kernel"}


def test_another_context_leaves_the_communicator_of_a_sharded_run() -> None:
    constants = calibration.read()
    one = over(prediction(24, 4, trains=True), 4, 20)
    outside = one.calibrated(constants).needs[0].outside
    assert outside == constants.context + constants.communicators(4)


def test_autocast_copies_are_not_kept_of_all_weights_where_they_are_sharded() -> None:
    plain = prediction(24, 14, trains=True)
    mixed = replace(plain, spec=plain.spec.model_copy(update={"autocast": "bfloat16"}))
    held = [spread(p, find("a100-80gb"), 4) for p in (plain, mixed)]
    first, second = (needs[0].components["activations"] for needs in held if needs)
    assert (first, second) == (14 * GIB, 2 * GIB)
    gathered = [needs[0].components["weights"] - 6 * GIB for needs in held if needs]
    assert gathered[0] == 2 * gathered[1] == 3 * 24 * GIB // LAYERS


def test_cards_that_wait_cost_as_those_that_work() -> None:
    one, gpu = prediction(122.4, 1), find("a100-80gb")
    made = plan(one, gpu, steps=1000)
    assert made is not None
    alone = one.cost(gpu, steps=1000).gpu_hours
    assert made.cost.gpu_hours.expected == 2 * alone.expected


def test_there_is_no_plan_for_what_no_machine_holds() -> None:
    assert plan(prediction(100, 100), find("t4"), steps=1) is None
    assert spread(prediction(10, 1), find("t4"), LAYERS + 1) is None
    assert spread(prediction(10, 1, trains=True), find("t4"), LAYERS + 1) is not None  # no stages


def test_a_prediction_is_read_back_as_it_was_written() -> None:
    one = prediction(24, 1)
    assert of_dict(one.as_dict()) == one


# --------------------------------------------------------------------------------------- commands


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of GPUs that were traced; a run of 122 GiB in all, of which half is 70 GiB."""
    counts: list[int] = []

    def predict(spec: RunSpec, *, full: bool, parallel: Parallel | None) -> Prediction:
        counts.append(parallel.count if parallel else 1)
        one = replace(prediction(122.4, 1), spec=spec)
        return over(one, parallel.count, 70) if parallel else one

    def predict_all(specs: Any, *, full: bool) -> Any:
        return (predict(spec, full=full, parallel=None) for spec in specs)

    monkeypatch.setattr(fit_command, "predict", predict)
    monkeypatch.setattr(parallel_traces, "predict", predict)
    monkeypatch.setattr(capacity_command, "predict_all", predict_all)
    return counts


OPT = ("--model", "opt-66b", "--method", "mezo", "--device", "a100-80gb")
GRID = ("--models", "opt-66b", "--methods", "mezo", "--devices", "a100-80gb")


def test_fit_traces_the_fewest_gpus_that_the_rules_find(asked: list[int]) -> None:
    done = CliRunner().invoke(app, ["fit", *OPT])
    assert done.exit_code == 0, done.output
    assert asked == [1, 2]
    assert "fits 2 x A100 80GB with" in done.output
    assert "(traced: layer pipeline)" in " ".join(done.output.split())


def test_fit_says_what_is_tight_before_what_fits(
    asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(spec: RunSpec, *, full: bool, parallel: Parallel) -> Prediction:
        made = over(prediction(122.4, 1), parallel.count, 70)
        if parallel.count > 2:
            return made
        needs = tuple(replace(n, reserved=80 * GIB).beside(n.outside) for n in made.needs)
        return replace(made, figures={"default": needs})

    monkeypatch.setattr(parallel_traces, "predict", predict)
    done = CliRunner().invoke(app, ["fit", *OPT])
    assert done.exit_code == 0, done.output
    told = " ".join(done.output.split())
    assert "is tight on 2 x A100 80GB: expandable segments make it fit" in told
    assert told.index("is tight on 2 x") < told.index("fits 4 x A100 80GB")


def test_fit_traces_exactly_as_many_gpus_as_it_is_told(asked: list[int]) -> None:
    done = CliRunner().invoke(app, ["fit", *OPT, "--num-gpus", "4"])
    assert done.exit_code == 0, done.output
    assert asked == [4] and "fits 4 x A100 80GB" in done.output
    assert "(traced: layer pipeline)" in " ".join(done.output.split())
    assert all(f"\n{device} " in done.output for device in range(4))
    done = CliRunner().invoke(app, ["fit", *OPT, "--num-gpus", "0"])
    assert done.exit_code == 2 and "greater than or equal to 1" in done.output


@pytest.mark.parametrize(("full", "counts"), [((), [1]), (("--full",), [1, 2])])
def test_capacity_estimates_several_gpus_unless_told_to_trace_all(
    full: tuple[str, ...], counts: list[int], asked: list[int]
) -> None:
    done = CliRunner().invoke(app, ["capacity", *GRID, *full, "--json"])
    assert done.exit_code == 0, done.output
    made = json.loads(done.output)["plan"]
    assert made["quality"] == ("traced" if full else "estimated") and asked == counts
