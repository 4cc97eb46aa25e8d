"""The optimiser front: one's own loop, torch's schedulers, the same steps as the engine."""

from __future__ import annotations

import pytest
import torch

from zo_core import Closure, Params, ZOOptimizer, derive_seed, methods


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 1)


def closure(m):
    x = torch.arange(12.0).view(4, 3) / 12
    return lambda: m(x).square().mean()


def test_it_takes_the_engines_steps():
    ours, plain = model(), model()
    optimizer = ZOOptimizer(ours, lr=0.1, eps=1e-2, seed=4)
    method, params = methods.build("mezo", eps=1e-2), Params.of(plain)
    state = method.init(params)
    for step in range(4):
        optimizer.step(closure(ours))
        objective = Closure(closure(plain))
        state, _ = method.step_(params, objective, state, seed=derive_seed(4, step), lr=0.1)
    assert torch.equal(ours.weight, plain.weight)
    assert optimizer.last.queries == 2


def test_schedulers_change_the_rate():
    m = model()
    optimizer = ZOOptimizer(m, lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = m.weight.detach().clone()
    optimizer.step(closure(m))
    scheduler.step()
    assert torch.allclose(m.weight, before, atol=1e-6), "rate 0 trains nothing"


def test_a_saved_optimizer_goes_on_where_it_stopped():
    whole, halves = model(), model()
    one = ZOOptimizer(whole, lr=0.1, seed=2)
    for _ in range(4):
        one.step(closure(whole))
    first = ZOOptimizer(halves, lr=0.1, seed=2)
    for _ in range(2):
        first.step(closure(halves))
    second = ZOOptimizer(halves, lr=0.1, seed=2)
    second.load_state_dict(first.state_dict())
    for _ in range(2):
        second.step(closure(halves))
    assert torch.equal(whole.weight, halves.weight)


@pytest.mark.parametrize("params", [lambda m: m.named_parameters(), lambda m: m.parameters()])
def test_tensors_and_named_tensors_are_accepted(params):
    m = model()
    assert ZOOptimizer(params(m), lr=0.1).step(closure(m)) > 0


@pytest.mark.parametrize("params", [lambda m: m.named_parameters(), lambda m: m.parameters()])
def test_frozen_parameters_stay_out(params):
    m = model()
    m.bias.requires_grad_(False)
    before = m.bias.detach().clone()
    ZOOptimizer(params(m), lr=0.1).step(closure(m))
    assert torch.equal(m.bias, before)


def test_first_order_methods_and_groups_are_refused():
    with pytest.raises(ValueError, match=r"torch\.optim"):
        ZOOptimizer(model(), method="ft_sgd", lr=0.1)
    with pytest.raises(ValueError, match="groups"):
        ZOOptimizer([{"params": list(model().parameters())}], lr=0.1)
