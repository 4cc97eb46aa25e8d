"""What the tracer sees of single operations, where fake tensors hide or change something."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from bench.predict.log import Log
from bench.predict.tracer import Tracer

N = 1000


def allocated(work, on_gpu=False):
    """Return size and operation of each block that ``work`` allocates."""
    log = Log()
    with FakeTensorMode(), Tracer(log, lambda phase, module: "other", on_gpu):
        work()
    rows = zip(log.kind, log.nbytes, log.op, strict=True)
    return [(int(nbytes), op) for kind, nbytes, op in rows if kind > 0]


def test_two_gradients_of_a_weight_are_added_in_place():
    def work():
        weight = torch.nn.Parameter(torch.empty(N))
        (weight.exp().sum() + weight.sin().sum()).backward()

    assert not any(op == "aten.add.Tensor" and n == 4 * N for n, op in allocated(work))


def test_two_gradients_are_a_third_block_where_somebody_holds_the_first():
    held = []

    def work():
        weight = torch.nn.Parameter(torch.empty(N))
        parts = [weight.exp(), weight.sin()]
        for part in parts:
            part.grad_fn.register_hook(lambda inputs, outputs: held.extend(inputs))
        sum(part.sum() for part in parts).backward()

    assert (4 * N, "aten.add.Tensor") in allocated(work)


def test_a_sum_that_somebody_else_makes_is_a_block():
    def work():
        a, b = torch.empty(N), torch.empty(N)
        kept = a + b
        del a
        kept.mul_(2)

    assert (4 * N, "aten.add.Tensor") in allocated(work)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_logsumexp_copies_its_input(mode):
    def work():
        with mode():
            torch.empty(2, N).logsumexp(1)

    assert [n for n, _ in allocated(work)].count(8 * N) == 2


def test_dropout_copies_nothing_in_evaluation():
    def work():
        with torch.inference_mode():
            F.dropout(torch.empty(N), 0.1, training=False)

    assert len(allocated(work)) == 1


def test_booleans_are_summed_as_integers():
    def work():
        torch.empty(N, dtype=torch.bool).sum()

    assert (8 * N, "aten._to_copy.default") in allocated(work)


def test_a_gpu_alone_widens_16_bits_as_it_sums_them():
    def work():
        torch.empty(N, dtype=torch.bfloat16).sum(0, dtype=torch.float32)

    assert (4 * N, "aten._to_copy.default") in allocated(work)
    assert (4 * N, "aten._to_copy.default") not in allocated(work, on_gpu=True)


def test_views_and_results_in_place_are_no_blocks():
    def work():
        whole = torch.empty(N)
        whole.view(10, -1).t()[3:].add_(1)

    assert allocated(work) == [(4 * N, "aten.empty.memory_format")]


def test_numbers_asked_of_fake_tensors_are_finite_and_differ():
    seen = []

    def work():
        seen.extend(float(torch.empty(())) for _ in range(3))
        seen.append(bool(torch.empty((), dtype=torch.bool)))
        seen.append(float(torch.tensor(2.5)))  # a constant is known

    allocated(work)
    assert len(set(seen[:3])) == 3
    assert seen[3:] == [False, 2.5]


@pytest.mark.parametrize(
    ("name", "options", "kept"),
    [("SGD", {}, 0), ("SGD", {"momentum": 0.9}, 1), ("AdamW", {}, 2), ("Adam", {}, 2)],
)
def test_a_fused_optimiser_steps_without_real_memory(name, options, kept):
    log, size = Log(), 4 * 1000 * 1000
    with FakeTensorMode(allow_fallback_kernels=False), Tracer(log, lambda phase, module: "other"):
        weight = torch.nn.Parameter(torch.empty(1000, 1000))
        weight.grad = torch.empty(1000, 1000)
        optimiser = getattr(torch.optim, name)([weight], lr=0.1, fused=True, **options)
        optimiser.step()
        assert log.live_peak() // size == 2 + kept
        assert log.work["run"].ops > 0
