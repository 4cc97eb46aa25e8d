"""Several devices, traced: what is where, what can't be laid out, and FSDP against real ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.predict import cache
from bench.predict.log import Log
from bench.predict.parallel import Layout, Parallel, layout_for, parallel_for
from bench.predict.predict import Device, Job, _outcome, of_log, request_of, traced
from bench.predict.prediction import Prediction, of_dict
from bench.predict.shapes import Shape
from bench.predict.trace import Request, trace
from bench.records import RunSpec, UserError

PIPELINE, FSDP = Parallel("pipeline", 2), Parallel("fsdp", 2)
HERE = Path(__file__).parent
PYTHON = (sys.executable, "-W", "ignore")
OURS = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}


def spec(method: str = "mezo", model: str = "opt-tiny", **others: Any) -> RunSpec:
    """Two steps of a tiny model."""
    fields: dict[str, Any] = dict(task="random_tokens", steps=2, lr=1e-6, batch_size=2, seq_len=16)
    more = dict(train_examples=8, anchor_examples=4, dtype="float32")
    return RunSpec(method=method, model=model, **{**fields, **more, **others})


def over(
    parallel: Parallel | None, one: RunSpec, emulate: Device = "cuda", layers: int | None = None
) -> Log:
    """Trace it over several devices."""
    return trace(Request(one, emulate=emulate, shape=Shape(layers), parallel=parallel))


def held(log: Log, component: str, device: int = 0) -> int:
    """Return the bytes of a component at the peak of a device."""
    return log.at_peak(device).get(component, 0)


# ------------------------------------------------------------------------------------- pipelines


@pytest.mark.parametrize(
    ("model", "restore"),
    [("opt-tiny", "exact"), ("roberta-tiny", "arithmetic"), ("llama-tiny", "arithmetic")],
)
def test_every_weight_of_a_pipeline_is_on_one_device(model: str, restore: str) -> None:
    one = spec("mezo", model, options={"restore": restore})
    log = over(PIPELINE, one)
    each = [held(log, "weights", device) for device in (0, 1)]
    assert sum(each) == held(over(None, one), "weights") and min(each) > 0
    assert not log.live(0)[-1] and not log.live(1)[-1]


@pytest.mark.parametrize("method", ["mezo_svrg", "hizoo", "zero_shot"])
def test_what_a_method_keeps_is_beside_the_weights_that_it_is_of(method: str) -> None:
    log, alone = over(PIPELINE, spec(method)), over(None, spec(method))
    states = [held(log, "state", device) for device in (0, 1)]
    assert sum(states) == pytest.approx(held(alone, "state"), abs=64)
    for device, state in enumerate(states):
        ratio = held(alone, "state") / held(alone, "weights")
        assert state == pytest.approx(ratio * held(log, "weights", device), abs=64)


def test_activations_that_cross_over_are_allocated_where_they_arrive() -> None:
    log = over(PIPELINE, spec(seq_len=64))
    rows = zip(log.kind, log.device, log.op, log.nbytes, strict=True)
    copies = {(d, n) for kind, d, op, n in rows if kind > 0 and op.startswith("aten._to_copy")}
    hidden = 2 * 64 * 64 * 4
    assert {(0, hidden), (1, hidden)} <= copies


def test_noise_terms_are_held_on_the_device_of_their_weights() -> None:
    log = over(PIPELINE, spec(), layers=4)
    rows = zip(log.kind, log.device, log.phase, log.nbytes, strict=True)
    terms = [device for kind, device, phase, n in rows if kind > 0 and phase == "perturb"]
    assert set(terms) == {0, 1}


def test_weights_of_a_pipeline_are_balanced_or_fill_the_first_device() -> None:
    balanced = over(PIPELINE, spec(), layers=8)
    each = [held(balanced, "weights", device) for device in (0, 1)]
    block = 200 * 1024  # 12 * 64^2 float32 numbers, and biases
    assert abs(each[0] - each[1]) <= block
    room = each[0] + 2 * block
    filled = over(Parallel("pipeline", 2, room), spec(), layers=8)
    assert each[0] + block <= held(filled, "weights") <= room


def test_a_pipeline_needs_a_block_for_each_device() -> None:
    with pytest.raises(UserError, match=r"over 4 devices needs 4 blocks, got 2. Take 2 devices"):
        over(Parallel("pipeline", 4), spec())


def test_weights_that_do_not_fit_what_they_are_given_are_refused() -> None:
    with pytest.raises(UserError, match="don't fit 2 devices with 1000 bytes"):
        over(Parallel("pipeline", 2, 1000), spec())


# ------------------------------------------------------------------------------------------ FSDP


SHARDED: dict[str, tuple[Device, RunSpec]] = {
    # Of so many tokens that its peaks are not inside of attention, whose kernel on the CPU takes
    # 16 KB that no trace sees.
    "adamw": ("cpu", spec("ft_adamw", seq_len=64)),
    "plain": ("cuda", spec("ft_adamw")),
    "mixed": ("cuda", spec("ft_adamw", autocast="bfloat16")),
    "sgd": ("cuda", spec("ft_sgd")),
    **{tuning: ("cuda", spec("ft_adamw", tuning=tuning)) for tuning in ("lora", "prefix")},
}
"""What is traced over two devices, in a process of its own: a group left over would end others."""


@pytest.fixture(scope="module")
def traces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of their logs."""
    folder = tmp_path_factory.mktemp("sharded")
    runs = {name: (device, one.model_dump()) for name, (device, one) in SHARDED.items()}
    done = subprocess.run(
        [*PYTHON, HERE / "sharded_traces.py", folder, json.dumps(runs)],
        env=OURS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def sharded(traces: Path) -> Log:
    """AdamW on two devices of the CPU's kernels."""
    return Log.load(traces / "adamw.npz")


def test_what_stays_after_a_step_is_the_nth_part_and_padding(sharded: Log) -> None:
    alone = over(None, SHARDED["adamw"][1], "cpu")
    kept = held(alone, "weights") + held(alone, "state")
    stays = int(sharded.live()[sharded.phase.index("run") - 1])
    tensors = 3 * 2 * 16 + 5
    padding = 3 * 4 * tensors  # less than a row of one number each, of weights and two moments
    steps = 4 * tensors  # AdamW counts steps in a number of each tensor
    assert kept // 2 <= stays <= kept // 2 + padding + steps


def test_nothing_of_a_sharded_trace_stays_alive(sharded: Log) -> None:
    assert sharded.live()[-1] == 0


def test_weights_are_gathered_in_a_step_and_given_back_before_the_update(sharded: Log) -> None:
    shard = sharded.at_peak(0, "load")["weights"]
    assert sharded.at_peak(0, "forward")["weights"] > 2 * shard
    assert sharded.at_peak(0, "update")["weights"] == shard
    assert sharded.at_peak(0, "update")["gradients"] == pytest.approx(shard, abs=1024)


def test_sharded_peaks_are_those_of_two_real_ranks(sharded: Log, tmp_path: Path) -> None:
    told = SHARDED["adamw"][1].model_dump_json()
    ranks = [
        subprocess.Popen(
            [*PYTHON, HERE / "one_fsdp_rank.py", str(rank), "2", tmp_path, told],
            env=OURS,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    out = [rank.communicate(timeout=300) for rank in ranks]
    assert not any(rank.returncode for rank in ranks), out
    real: dict[str, int] = json.loads(out[0][0].splitlines()[-1])
    predicted = sharded.peaks_by_phase()
    for phase in ("forward", "backward", "update"):  # while loading a real model is whole
        assert real[phase] == pytest.approx(predicted[phase], abs=4096), phase


@pytest.mark.parametrize("tuning", ["lora", "prefix"])
def test_adapters_are_sharded_too(tuning: str, traces: Path) -> None:
    log = Log.load(traces / f"{tuning}.npz")
    assert 0 < held(log, "state") < log.at_peak(0, "load")["weights"] / 4


def test_autocast_gathers_weights_in_sixteen_bits(traces: Path) -> None:
    plain, mixed = (Log.load(traces / f"{name}.npz") for name in ("plain", "mixed"))
    gathered = [log.at_peak(0, "forward")["weights"] for log in (plain, mixed)]
    assert gathered[1] < 0.75 * gathered[0]
    assert held(plain, "state") == held(mixed, "state")


def test_the_first_rank_stands_for_all_and_has_a_communicator(traces: Path) -> None:
    staged_log, model = traced(Request(spec(), parallel=PIPELINE))
    staged = of_log(Request(spec(), parallel=PIPELINE), staged_log, model, 2)
    assert len(staged.needs) == 2 and of_dict(staged.as_dict()) == staged
    request = Request(spec("ft_adamw"), parallel=Parallel("fsdp", 4))
    made = of_log(request, Log.load(traces / "plain.npz"), model, 2)
    assert [each.device for each in made.needs] == [0, 1, 2, 3]
    assert len({each.allocated for each in made.needs}) == 1
    assert made.needs[0].outside.expected > staged.needs[0].outside.expected


def test_an_idle_device_of_a_pipeline_is_counted() -> None:
    request = Request(spec(), shape=Shape(5), parallel=Parallel("pipeline", 4))
    log, model = traced(request)
    assert log.devices() == [0, 1, 2]  # two blocks each, one beside the embedding
    assert [each.allocated > 0 for each in of_log(request, log, model, 5).needs] == [1, 1, 1, 0]


# ------------------------------------------------------------------------- what can't be laid out


@pytest.mark.parametrize(
    ("method", "layout", "told"),
    [
        ("ft_adamw", "pipeline", "has a backward pass, .* Take layout 'fsdp'"),
        ("mezo", "fsdp", "works on whole weights, .* Take layout 'pipeline'"),
        ("zero_shot", "fsdp", "Take layout 'pipeline'"),
    ],
)
def test_a_method_that_can_not_run_so_says_what_to_take(
    method: str, layout: Layout, told: str
) -> None:
    found = _outcome(Job(Request(spec(method), parallel=Parallel(layout, 2)), full=True))
    assert isinstance(found, UserError)
    assert "\n" not in str(found)
    with pytest.raises(UserError, match=told):
        raise found


def test_what_torch_can_not_shard_is_told_by_its_name(traces: Path) -> None:
    told = (traces / "sgd.txt").read_text()
    assert "Method 'ft_sgd' can't be sharded by this torch: aten._fused_sgd_ takes no" in told


def test_a_layout_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match=r"Unknown layout 'fdsp'. Did you mean 'fsdp'"):
        Parallel("fdsp", 2)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(UserError, match="Expected 2 devices or more for a layer pipeline, got 1"):
        Parallel("pipeline", 1)
    with pytest.raises(UserError, match="leave 'memory' out"):
        Parallel("fsdp", 2, 1 << 30)
    with pytest.raises(UserError, match="Expected 1 GPU or more, got 0"):
        parallel_for(spec(), 0)


def test_a_method_takes_the_layout_it_can() -> None:
    assert layout_for(spec("ft_adamw")) == "fsdp" and layout_for(spec("mezo")) == "pipeline"
    assert parallel_for(spec(), 1) is None and parallel_for(spec(), 2) == PIPELINE


def test_layouts_are_kept_apart() -> None:
    requests = [request_of(spec(), "cuda", "", layout) for layout in (None, PIPELINE, FSDP)]
    more = request_of(spec(), "cuda", "", Parallel("pipeline", 2, 5))
    assert len({cache.key_of(request, "") for request in (*requests, more)}) == 4


def test_who_maps_blocks_to_devices_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for told in ("1", "2"):
        monkeypatch.setattr(cache, "version", {"accelerate": told}.get)
        keys.add(cache.key_of(request_of(spec(), "cuda", "", PIPELINE), ""))
    assert len(keys) == 2


def test_a_prediction_over_several_devices_says_so() -> None:
    found = _outcome(Job(Request(spec(), parallel=PIPELINE), full=True))
    assert isinstance(found, Prediction)
    assert found.layout == "layer pipeline" and found.parallel == PIPELINE
    assert found.whole and found.facts["devices"] == "layer pipeline over 2"
