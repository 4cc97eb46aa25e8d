"""The optimiser front: one's own loop, torch's schedulers, the same steps as the engine."""

from __future__ import annotations

import pytest
import torch

from zo_core import Closure, Params, ZOOptimizer, derive_seed, methods
from zo_core.base import Replayable


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Linear(3, 1)


def closure(m):
    x = torch.arange(12.0).view(4, 3) / 12
    return lambda: m(x).square().mean()


def offering(m, seen=None):
    """Return the closure with an anchor set and tiles, which tell when they are looked at."""
    x, seen = torch.arange(12.0).view(4, 3) / 12, [] if seen is None else seen

    def told(what, value):
        seen.append(what)
        return value()

    def tiled(copies):
        return m(x.repeat(copies, 1)).square().view(copies, -1).mean(1)

    return Closure(
        lambda: told("batch", lambda: tiled(1)[0]),
        lambda: told("anchor", lambda: tiled(1)[0]),
        tiled=lambda copies: told("tiled", lambda: tiled(copies)),
    )


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


STORED = [
    *((name, {}) for name in methods.names() if isinstance(methods.build(name), Replayable)),
    ("mezo_svrg", {"storage": "dense", "period": 3}),
    ("mezo_adam", {"storage": "replay"}),
    ("mezo_momentum", {"storage": "replay"}),
    ("sparse_mezo", {"storage": "packed", "refresh": 3}),
    ("sparse_mezo", {"storage": "dense"}),
    ("mezo_svrg_released", {"period": 3, "anneal": 3.0, "anneal_every": 1}),
]


@pytest.mark.parametrize("name,options", STORED)
def test_any_state_goes_through_a_file_that_torch_loads_by_default(name, options, tmp_path):
    whole, halves = model(), model()
    one, first, second = (
        ZOOptimizer(m, name, lr=1e-3, seed=2, **options) for m in (whole, halves, halves)
    )
    for _ in range(4):
        one.step(offering(whole))
    for _ in range(2):
        first.step(offering(halves))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(2):
        second.step(offering(halves))
    assert torch.equal(whole.weight, halves.weight) and torch.equal(whole.bias, halves.bias)
    assert not torch.equal(whole.weight, model().weight)


def test_a_state_dict_is_a_snapshot():
    m = model()
    optimizer = ZOOptimizer(m, "mezo_adam", lr=0.1)
    optimizer.step(closure(m))
    saved = optimizer.state_dict()["method_state"]
    told = repr(saved)
    optimizer.step(closure(m))
    assert repr(saved) == told != repr(optimizer.state_dict()["method_state"])


@pytest.mark.parametrize(
    "named", ["pstats:FunctionProfile", "zo_core.optim:copy", "zo_core.base:Params"]
)
def test_a_state_that_names_other_classes_is_refused(named):
    optimizer = ZOOptimizer(model(), lr=0.1)
    state = {**optimizer.state_dict(), "method_state": {"zo_core class": named}}
    with pytest.raises(ValueError, match="no state of zo_core"):
        optimizer.load_state_dict(state)


def test_a_closure_may_offer_an_anchor_set_and_tiles():
    for name, options, asked in (
        ("mezo_svrg", {}, "anchor"),
        ("mezo", {"restore": "batched"}, "tiled"),
    ):
        m = model()
        seen = []
        optimizer = ZOOptimizer(m, name, lr=1e-3, **options)
        optimizer.step(offering(m, seen))
        assert set(seen) == {asked}
        with pytest.raises(ValueError, match=f"{asked}="):
            ZOOptimizer(m, name, lr=1e-3, **options).step(closure(m))


def test_no_group_is_added_to_a_whole_optimizer():
    optimizer = ZOOptimizer(model(), lr=0.1)
    with pytest.raises(ValueError, match=r"one group.* make a new one"):
        optimizer.add_param_group({"params": [torch.zeros(3)]})
    assert len(optimizer.param_groups) == 1


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
