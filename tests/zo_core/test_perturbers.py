"""How theta is moved and comes back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zo_core import Closure, Params, Term, directions
from zo_core.base import Look
from zo_core.perturbers import elsewhere
from zo_core.perturbers.in_forward import InForward
from zo_core.perturbers.in_place import InPlace

LAW = directions.build("gaussian")
POINTS = ((Term(1, 0.1),), (), (Term(1, -0.1), Term(2, 0.05)))


class Nested(nn.Module):
    """Tied weights, a parameter of its own, a module used twice, a child inside a parent."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mix = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.full((6,), 1.5))
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        x = self.mix(torch.tanh(self.mix(x))) * self.scale
        return self.head(x)


@pytest.fixture
def net():
    torch.manual_seed(3)
    module = Nested()
    ids = torch.arange(8) % 11
    loss = Closure(lambda: module(ids).square().mean())
    return module, Params.of(module), loss


def expected(module, params, loss, point):
    clean = [p.tensor.detach().clone() for p in params]
    LAW.add_(params, point)
    with torch.no_grad():
        value = float(loss())
        for p, was in zip(params, clean, strict=True):
            p.tensor.copy_(was)
    return value


@pytest.mark.parametrize("perturber", [InPlace(), InForward()], ids=["in_place", "in_forward"])
def test_every_point_is_theta_plus_its_terms(perturber, net):
    module, params, loss = net
    wanted = [expected(module, params, loss, point) for point in POINTS]
    seen = perturber.losses(params, loss, Look(LAW, POINTS))
    assert seen == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_in_forward_gives_the_same_bits_back_also_after_an_error(dtype, net):
    module, _, _ = net
    module.to(dtype)
    params = Params.of(module)
    clean = [p.tensor.detach().clone() for p in params]
    ids = torch.arange(8)
    loss = Closure(lambda: module(ids).float().square().mean())
    InForward().losses(params, loss, Look(LAW, POINTS))
    assert all(torch.equal(p.tensor, c) for p, c in zip(params, clean, strict=True))
    module.head.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        InForward().losses(params, loss, Look(LAW, POINTS))
    assert all(torch.equal(p.tensor, c) for p, c in zip(params, clean, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


@pytest.mark.parametrize("together", [0, 1 << 24])
def test_in_forward_perturbs_one_module_at_a_time_or_a_small_part_of_the_model(
    net, together, monkeypatch
):
    monkeypatch.setattr(elsewhere, "_TOGETHER", together)
    module, params, loss = net
    clean = module.mix.weight.detach().clone()
    kept = []
    module.embed.register_forward_hook(
        lambda *_: kept.append(torch.equal(module.mix.weight, clean))
    )
    InForward().losses(params, loss, Look(LAW, POINTS[:1]))
    assert kept == [not together]
    assert torch.equal(module.mix.weight, clean)


def test_in_forward_refuses_to_leave_a_tensor_out(net):
    module, _, _ = net
    params = Params.of(module)
    loss = Closure(lambda: nn.functional.linear(torch.ones(1, 6), module.mix.weight).sum())
    with pytest.raises(ValueError, match=r"'mix.weight' is not used .* restore='arithmetic'"):
        InForward().losses(
            params, Closure(lambda: module.head(torch.ones(6)).sum()), Look(LAW, POINTS[:1])
        )
    with pytest.raises(ValueError, match="not used in the forward pass"):
        InForward().losses(params, loss, Look(LAW, POINTS[:1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_retracing_leaves_the_roundings_of_the_live_moves(dtype, net):
    module, _, _ = net
    module.to(dtype)
    live = Params.of(module)
    again = Params((p.name, p.tensor.detach().clone()) for p in live)
    before = [p.tensor.clone() for p in again]
    ids = torch.arange(8)
    loss = Closure(lambda: module(ids).float().square().mean())
    InPlace().losses(live, loss, Look(LAW, POINTS))
    InPlace().retrace_(again, Look(LAW, POINTS))
    assert all(torch.equal(a.tensor, b.tensor) for a, b in zip(live, again, strict=True))
    assert not all(torch.equal(a.tensor, b) for a, b in zip(again, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_staying_perturber_leaves_theta_at_the_last_point_unless_something_is_raised(dtype, net):
    module, _, _ = net
    module.to(dtype)
    live, look = Params.of(module), Look(LAW, POINTS)
    start = [p.tensor.detach().clone() for p in live]
    again = Params((p.name, p.tensor.detach().clone()) for p in live)
    ids, seen = torch.arange(8), []

    def value():
        seen[:] = [t.detach().clone() for t in live.tensors]
        return module(ids).float().square().mean()

    staying, back = InPlace().staying, InPlace()
    staying.losses(live, Closure(value), look)
    assert all(torch.equal(t, at) for t, at in zip(live.tensors, seen, strict=True))
    assert not all(torch.equal(t, was) for t, was in zip(live.tensors, start, strict=True))
    staying.retrace_(again, look)
    assert all(torch.equal(a, b) for a, b in zip(live.tensors, again.tensors, strict=True))
    saved = back.cost(live, POINTS).noise_passes - staying.cost(live, POINTS).noise_passes
    assert saved == len(POINTS[-1])
    with torch.no_grad():
        for tensor, was in zip(live.tensors, start, strict=True):
            tensor.copy_(was)
    with pytest.raises(ZeroDivisionError):
        staying.losses(live, Closure(lambda: 1 / 0), look)
    worst = max((t - w).abs().max() for t, w in zip(live.tensors, start, strict=True))
    assert worst <= torch.finfo(dtype).eps * 4
    assert InForward().staying is None
