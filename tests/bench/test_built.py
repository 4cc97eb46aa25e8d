"""Model, task, tuning and method put together: what a spec says is what is run."""

from __future__ import annotations

import pytest
import torch

from bench import tasks
from bench.built import build
from bench.objective import Seen, objective
from bench.records import RunSpec, UserError
from zo_core import derive_seed, methods


def spec(**changes):
    fields = {"method": "mezo", "model": "llama-tiny", "task": "marker", "batch_size": 6,
              "seq_len": 16, "steps": 2, "lr": 1e-3}  # fmt: skip
    return RunSpec(**{**fields, **changes})


def stepped(given, steps=2):
    """Take steps as a run does; return the built run, the losses, and the passes counted."""
    built = build(given)
    state = built.method.init(built.params)
    losses, passes = [], []
    for step in range(steps):
        batch, seen = built.task.batch(step), Seen()
        built.module.train(built.method.needs_gradient)
        torch.manual_seed(step)
        state, info = built.method.step_(
            built.params,
            objective(given, built.task, built.module, batch, seen),
            state,
            seed=derive_seed(given.seed, step),
            lr=given.lr,
        )
        losses += info.losses
        passes.append(seen.passes(batch))
    return built, losses, passes


def weights(built):
    return torch.cat([p.tensor.detach().flatten() for p in built.params])


@pytest.mark.parametrize("method", ["mezo", "fzoo", "ft_sgd"])
def test_micro_batches_give_the_step_of_the_whole_batch(method):
    whole, losses, passes = stepped(spec(method=method))
    parts, in_parts, passes_in_parts = stepped(spec(method=method, micro_batch_size=4))
    assert in_parts == pytest.approx(losses, rel=1e-5)
    assert passes == passes_in_parts
    assert torch.allclose(weights(whole), weights(parts), atol=1e-4)


def test_batched_candidates_are_looked_at_in_micro_batches_too():
    _, losses, passes = stepped(spec(method="fzoo", options={"restore": "batched"}))
    _, in_parts, again = stepped(
        spec(method="fzoo", options={"restore": "batched"}, micro_batch_size=4)
    )
    _, in_turn, _ = stepped(spec(method="fzoo", options={"restore": "exact"}))
    assert in_parts == pytest.approx(losses, rel=1e-5)
    assert in_turn == pytest.approx(losses, rel=1e-5)
    assert passes == again == [9, 9]


def test_an_anchor_set_counts_as_the_minibatches_it_takes():
    given = spec(method="mezo_svrg", anchor_examples=20)
    _, losses, passes = stepped(given)
    assert [len(losses)] == [6] and passes == [7, 4]  # 2 x 20 examples are 6.7 minibatches of 6
    _, _, with_all = stepped(spec(method="mezo_svrg", train_examples=20))
    assert with_all == [7, 4]
    assert len(build(given).task.anchor()) == 4


def test_checkpointing_gives_the_same_gradient_and_keeps_less():
    def kept(given):
        built = build(given)
        built.module.train()
        count = 0

        def pack(tensor):
            nonlocal count
            count += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            built.task.loss(built.module, built.task.batch(0))
        return count

    plain, checkpointed = spec(method="ft_sgd"), spec(method="ft_sgd", checkpointing=True)
    (one, losses, _), (other, again, _) = stepped(plain), stepped(checkpointed)
    assert again == pytest.approx(losses, rel=1e-5)
    assert torch.allclose(weights(one), weights(other), atol=1e-6)
    assert kept(checkpointed) < 0.7 * kept(plain)


def test_autocast_computes_in_bfloat16_on_float32_weights():
    seen = []
    given = spec(method="ft_adamw", autocast="bfloat16")
    built = build(given)
    linear = next(m for m in built.module.modules() if isinstance(m, torch.nn.Linear))
    linear.register_forward_hook(lambda m, i, out: seen.append((m.weight.dtype, out.dtype)))
    loss = objective(given, built.task, built.module, built.task.batch(0), Seen())()
    assert seen == [(torch.float32, torch.bfloat16)] and loss.dtype == torch.float32
    loss.backward()
    assert linear.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("tuning,options", [("lora", {}), ("head", {}), ("lora", {"r": 2}),
                                            ("layers", {"pattern": "*up_proj*"})])  # fmt: skip
@pytest.mark.parametrize("method", ["mezo", "ft_sgd"])
def test_what_is_not_trained_stays(method, tuning, options):
    given = spec(method=method, tuning=tuning, tuning_options=options)
    fresh, (done, _, _) = build(given), stepped(given)
    trained = {p.name for p in done.params}
    moved = 0
    for (name, was), now in zip(
        fresh.module.named_parameters(), done.module.parameters(), strict=True
    ):
        same = torch.equal(was, now)
        moved += not same
        assert same or name in trained
    assert moved and done.facts.trained_parameters == done.params.elements
    assert done.facts.trained_parameters < done.facts.parameters


def test_accuracy_as_a_score_trains_zeroth_order_alone():
    _, losses, _ = stepped(spec(score="accuracy", options={"eps": 0.5}))
    assert all(float(x * 6).is_integer() or abs(x * 6 - round(x * 6)) < 1e-5 for x in losses)
    with pytest.raises(UserError, match=r"score = 'accuracy' has no gradient.*'mezo'"):
        build(spec(method="ft_sgd", score="accuracy"))


@pytest.mark.parametrize("changes,told", [
    ({"checkpointing": True}, "there is no backward pass"),
    ({"method": "ft_sgd", "checkpointing": True, "tuning": "prefix"}, "a prefix is dropped"),
    ({"autocast": "bfloat16", "dtype": "bfloat16"}, "is for float32 weights"),
    ({"method": "in_context_learning"}, "set demonstrations"),
    ({"method": "linear_probe"}, "set tuning = 'head'"),
    ({"tuning": "lorra"}, "Did you mean 'lora'"),
])  # fmt: skip
def test_what_does_not_go_together_is_one_line(changes, told):
    with pytest.raises(UserError, match=told) as error:
        build(spec(**changes))
    assert "\n" not in str(error.value)


def test_every_method_runs_on_a_task():
    for method in methods.names():
        more = {"linear_probe": {"tuning": "head", "objective": "head"}}.get(method, {})
        if method in ("in_context_learning", "ft_adamw_8bit"):
            continue  # needs a tokenizer; needs bitsandbytes
        built, losses, _ = stepped(spec(method=method, anchor_examples=12, **more))
        assert losses and torch.isfinite(weights(built)).all(), method


def test_tasks_say_what_head_they_want():
    assert tasks.head_classes(spec()) is None
    assert tasks.head_classes(spec(objective="head")) == 2
