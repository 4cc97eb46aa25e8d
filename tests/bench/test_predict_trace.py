"""A run is traced by its own code, on tensors without data, and attributed."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F

from bench.predict.log import OUTSIDE_BLOCKS
from bench.predict.shapes import Shape, layers_of
from bench.predict.trace import Request, tensors_in, trace
from bench.records import RunSpec, UserError
from zo_core import noise
from zo_core.noise import cpu


def spec(**fields):
    """Two steps of a tiny model."""
    given = {"method": "mezo", "model": "opt-tiny", "task": "random_tokens", "steps": 2}
    return RunSpec(**{**given, "batch_size": 2, "seq_len": 16, "lr": 1e-3, **fields})


def traced(emulate="cpu", attention=None, config=None, **fields):
    """Trace it."""
    shape = Shape(attention=attention, config=config or {})
    return trace(Request(spec(**fields), emulate=emulate, shape=shape))


def test_nothing_stays_alive_after_a_trace():
    assert traced(method="ft_adamw").live()[-1] == 0


def test_components_add_up_to_the_peak():
    log = traced(method="ft_adamw")
    for phase, peak in log.peaks_by_phase().items():
        assert sum(log.at_peak(0, phase).values()) == peak


def test_weights_gradients_and_state_are_told_apart():
    log = traced(method="ft_adamw")
    at_end = log.at_peak(0, "update")
    loaded = log.at_peak(0, "load")
    weights = loaded.pop("weights")
    assert set(loaded) <= {"other"} and sum(loaded.values()) < 8192  # torch's stream, kept aside
    assert sum(log.at_peak(0, "load").values()) == log.peaks_by_phase()["load"]
    assert at_end["weights"] == at_end["gradients"] == weights
    assert 2 * weights < at_end["state"] < 2 * weights + 4096


def test_a_zeroth_order_step_keeps_nothing_but_its_weights():
    log = traced()
    weights = log.at_peak(0, "load")["weights"]
    assert log.peaks_by_phase()["update"] - weights < 4096
    assert set(log.at_peak(0, "perturb")) <= {"weights", "inputs", "activations", "noise"}


def test_the_heads_blocks_are_logits_and_know_their_module():
    log = traced(method="ft_sgd")
    rows = zip(log.kind, log.phase, log.module, log.component, strict=True)
    heads = {(phase, module) for kind, phase, module, c in rows if kind > 0 and c == "logits"}
    assert heads == {("forward", "lm_head"), ("backward", "lm_head")}
    assert "model.decoder.layers.1.fc1" in log.module


def test_a_pass_over_the_weights_counts_in_full():
    # Two steps of MeZO: two moves and an update that takes theta back, each reads and writes.
    log = traced()
    weights = log.at_peak(0, "load")["weights"]
    assert log.work["perturb"].bytes == 2 * 2 * 2 * weights
    assert log.work["update"].bytes == 2 * 2 * weights


def test_matrix_products_are_two_operations_a_parameter_and_token():
    log = traced(model="opt-125m", seq_len=64)
    parameters = log.at_peak(0, "load")["weights"] / 4
    passes, tokens = 4, 2 * 64
    flops = log.work["forward"].flops["float32"]
    assert flops == pytest.approx(2 * parameters * tokens * passes, rel=0.06)


@pytest.mark.parametrize(
    ("fields", "attention", "kernel"),
    [
        ({"dtype": "bfloat16"}, "sdpa", "aten._scaled_dot_product_flash_attention.default"),
        (
            {"dtype": "bfloat16", "model": "llama-tiny"},  # no mask, though it is asked for one
            "sdpa",
            "aten._scaled_dot_product_flash_attention.default",
        ),
        ({"dtype": "float32"}, "sdpa", "aten._scaled_dot_product_efficient_attention.default"),
        (
            {"dtype": "bfloat16", "task": "marker", "batch_size": 16},  # padded
            "sdpa",
            "aten._scaled_dot_product_efficient_attention.default",
        ),
        ({"dtype": "bfloat16"}, "eager", "aten._softmax.default"),
    ],
)
def test_a_gpus_attention_kernel_is_taken(fields, attention, kernel):
    ops = Counter(traced("cuda", attention, method="ft_sgd", **fields).op)
    assert ops[kernel]
    others = {op for op in ops if "attention" in op and not op.startswith(kernel.split(".def")[0])}
    assert not others


def test_a_gpus_dropout_keeps_a_mask_of_booleans():
    def masks(emulate):
        log = traced(emulate, method="ft_sgd", config={"dropout": 0.1})
        rows = zip(log.kind, log.nbytes, log.op, strict=True)
        return [int(n) for kind, n, op in rows if kind > 0 and "native_dropout.default" in op]

    elements = 2 * 16 * 64  # batch, tokens, width
    assert set(masks("cuda")) == {4 * elements, elements}
    assert not masks("cpu")


def test_a_padded_run_and_its_evaluation_are_traced():
    log = traced(task="marker", eval_examples=8, method="ft_sgd")
    assert {"load", "evaluate", "forward", "backward", "update"} <= set(log.peaks_by_phase())


def test_weights_of_32_bits_with_stochastic_rounding_are_traced_as_any():
    log = traced(options={"rounding": "stochastic"})
    assert {"perturb", "update"} <= set(log.peaks_by_phase())


def test_the_evaluation_after_training_has_the_optimisers_state_beside_it():
    log = traced(task="marker", eval_examples=8, method="ft_adamw")
    weights = log.peaks_by_phase()["load"]
    assert log.peaks_by_phase()["evaluate"] > 3 * weights
    before = traced(task="marker", eval_examples=8, method="ft_adamw", steps=0)
    assert before.peaks_by_phase()["evaluate"] < 2 * weights
    assert (log.facts["evaluations"], before.facts["evaluations"]) == ("2", "1")


def test_weights_outside_of_blocks_are_told():
    log = traced()
    none = traced(config={"num_hidden_layers": 0}).at_peak(0, "load")["weights"]
    assert int(log.facts[OUTSIDE_BLOCKS]) == none < log.at_peak(0, "load")["weights"]


def test_adapters_are_traced():
    full, lora = traced(method="ft_adamw"), traced(method="ft_adamw", tuning="lora")
    assert lora.at_peak(0, "update")["gradients"] < full.at_peak(0, "update")["gradients"] / 10


def test_what_can_not_be_traced_says_so_in_one_line():
    with pytest.raises(UserError, match="'ft_adamw_8bit' can't be traced: its kernels"):
        traced(method="ft_adamw_8bit")
    with pytest.raises(UserError, match="Did you mean 'mezo'"):
        traced(method="mezzo")
    with pytest.raises(UserError, match="Did you mean 'opt-tiny'"):
        traced(model="opt-tin")


def test_afterwards_everything_is_as_before():
    def replaced():
        mode = torch.utils._python_dispatch._get_current_dispatch_mode()
        ours = [noise.add_, noise.pieces, cpu.takes, cpu.write, torch.Tensor.tolist]
        return [F.dropout, F.scaled_dot_product_attention, mode, *ours]

    before = replaced()
    traced("cuda")
    with pytest.raises(UserError):
        traced("cuda", model="none")
    assert replaced() == before
    assert torch.ones(2).tolist() == [1.0, 1.0]


def test_a_noise_pass_holds_what_the_devices_kernel_does():
    def held(emulate):
        log = traced(emulate)
        rows = zip(log.kind, log.nbytes, log.phase, strict=True)
        return {int(n) for kind, n, phase in rows if kind > 0 and phase == "perturb"}

    assert held("cpu") == set()  # numba: nothing of torch's
    assert held("cuda") == {12}  # triton: seed and coefficient of one term


def test_the_state_of_an_optimiser_is_found_without_its_weights():
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    weight.sum().backward()
    optimizer.step()
    (momentum,) = tensors_in((optimizer, None, 3.0))
    assert momentum.shape == (3,)
    assert momentum is not weight


def test_a_shape_may_have_another_depth():
    assert layers_of("opt-tiny") == 2
    with Shape(layers=5).taken():
        assert layers_of("opt-tiny") == 5
    assert layers_of("opt-tiny") == 2
