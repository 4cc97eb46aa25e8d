"""The laws of docs/design.md: every method and distribution in the folder gets them free."""

from __future__ import annotations

import doctest
import importlib
import random

import numpy as np
import pytest
import torch

from zo_core import (
    Closure,
    GradientEstimate,
    NonFiniteLoss,
    Params,
    Term,
    Trajectory,
    derive_seed,
    directions,
    methods,
    sample,
)
from zo_core.perturbers.in_place import DRIFT_ULPS
from zo_core.trajectory import TrajectoryWriter
from zo_core.zeroth_order import ZerothOrder

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
METHODS = methods.names()
ZEROTH = [n for n in METHODS if isinstance(methods.build(n), ZerothOrder)]
TRAINS = [n for n in METHODS if n != "zero_shot"]


def build(name: str, **options):
    return methods.build(name, **options)


def flat_estimate(estimate: GradientEstimate, params: Params) -> torch.Tensor:
    """Return g as a flat float64 tensor."""
    zeros = [(p.name, torch.zeros(p.tensor.shape, dtype=torch.float64)) for p in params]
    estimate.distribution.add_(Params(zeros), estimate.terms)
    return torch.cat([t.reshape(-1) for _, t in zeros])


def standard_errors(name, problem, draws=1500, wrong=lambda e: e, **options):
    """Return the largest distance of the mean estimate from the gradient, in standard errors."""
    p = problem(torch.float64)
    method = build(name, **options)
    state = method.estimator.init(p.params)
    estimates = []
    for draw in range(draws):
        seed = derive_seed(11, draw)
        estimate, state = method.estimator.estimate(p.params, p.objective, seed, state)
        estimates.append(flat_estimate(wrong(estimate), p.params))
    g = torch.stack(estimates)
    return ((g.mean(0) - p.gradient()).abs() / (g.std(0) / draws**0.5)).max()


# 1 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", directions.names())
@pytest.mark.parametrize("name", ZEROTH)
def test_mean_of_estimates_is_the_gradient(name, distribution, problem):
    assert standard_errors(name, problem, distribution=distribution) < 4


def test_the_first_law_bites(problem):
    def other_seed(e):
        return GradientEstimate(
            e.distribution, tuple(Term(t.seed + 1, t.coefficient) for t in e.terms), e.losses
        )

    def doubled(e):
        return GradientEstimate(
            e.distribution, tuple(Term(t.seed, 2 * t.coefficient) for t in e.terms), e.losses
        )

    assert standard_errors("mezo", problem, wrong=other_seed) > 8
    assert standard_errors("mezo", problem, wrong=doubled) > 8


@pytest.mark.parametrize("distribution", directions.names())
def test_directions_have_unit_covariance(distribution):
    d, draws = 6, 20_000
    params = [("w", torch.zeros(d))]
    law = directions.build(distribution)
    rows = []
    for draw in range(draws):
        params[0][1].zero_()
        law.add_(Params(params), [Term(derive_seed(3, draw), 1.0)])
        rows.append(params[0][1].clone())
    u = torch.stack(rows).double()
    assert (u.T @ u / draws - torch.eye(d)).abs().max() < 5 * (2 / draws) ** 0.5


# 2 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ZEROTH)
def test_estimate_leaves_theta_as_found(name, dtype, problem):
    p, eps = problem(dtype), 1e-2
    before = {n: t.clone() for n, t in p.tensors.items()}
    method = build(name, eps=eps)
    method.estimator.estimate(p.params, p.objective, 3, method.estimator.init(p.params))
    for param in p.params:
        z = sample("gaussian", 3, param.key, param.tensor.numel()).view(param.tensor.shape)
        largest = before[param.name].abs().double() + eps * z.abs()
        ulp = torch.finfo(dtype).eps * 2 ** torch.log2(largest).floor()
        drift = (param.tensor.double() - before[param.name].double()).abs()
        assert (drift <= DRIFT_ULPS * ulp).all()


@pytest.mark.parametrize("name", ZEROTH)
def test_theta_is_put_back_when_the_objective_raises(name, problem):
    p = problem(torch.float64)
    before = p.flat()
    calls = iter([torch.tensor(1.0), torch.tensor(float("nan"))])
    method = build(name)
    with pytest.raises(NonFiniteLoss):
        method.step_(p.params, Closure(lambda: next(calls)), method.init(p.params), seed=1, lr=0.1)
    assert torch.allclose(p.flat(), before, rtol=0, atol=1e-14)


# 3 -----------------------------------------------------------------------------------------------


def train(p, name, seed=0, steps=5, lr=0.02, **options):
    method = build(name, **options)
    state = method.init(p.params)
    for step in range(steps):
        step_seed = derive_seed(seed, step)
        state, _ = method.step_(p.params, p.objective, state, seed=step_seed, lr=lr)
    return p.flat()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_one_seed_one_trajectory(name, dtype, problem):
    needs = build(name).needs_gradient
    threads = torch.get_num_threads()
    ends = []
    try:
        for n in (1, 2, 2):
            torch.set_num_threads(n)
            ends.append(train(problem(dtype, needs), name))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[1], ends[2])


@pytest.mark.parametrize("name", ZEROTH)
def test_another_seed_is_another_trajectory(name, problem):
    assert not torch.equal(train(problem(), name, seed=0), train(problem(), name, seed=1))


@pytest.mark.parametrize("distribution", directions.names())
def test_neighbours_get_different_directions(distribution):
    def direction(seed, name="w"):
        tensor = torch.zeros(4096)
        directions.build(distribution).add_(Params([(name, tensor)]), [Term(seed, 1.0)])
        return tensor

    first = direction(derive_seed(0, 0))
    others = [
        direction(derive_seed(0, 1)),  # the next step
        direction(derive_seed(1, 0)),  # the next run
        direction(derive_seed(0, 0) + 1),  # the next number
        direction(derive_seed(0, 0), "v"),  # another tensor of the same shape
    ]
    for other in others:
        assert abs(float((first * other).mean())) < 5 / 4096**0.5


# 4 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_global_random_streams_are_untouched(name, problem):
    def streams():
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

    before = streams()
    train(problem(requires_grad=build(name).needs_gradient), name)
    assert streams() == before


@pytest.mark.parametrize("name", METHODS)
def test_frozen_entries_are_bit_identical(name):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    module[0].weight.requires_grad_(False)
    frozen = module[0].weight.detach().clone()
    moved = module[1].weight.detach().clone()
    method, params = build(name), Params.of(module)
    x = torch.randn(8, 4)
    state = method.init(params)
    for step in range(3):
        loss = Closure(lambda: module(x).square().mean())
        state, _ = method.step_(params, loss, state, seed=step, lr=0.1)
    assert torch.equal(module[0].weight, frozen)
    assert torch.equal(module[1].weight, moved) == (name not in TRAINS)


# 5 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_queries_are_the_calls_of_the_objective(name, problem):
    method = build(name)
    p = problem(requires_grad=method.needs_gradient)
    _, info = method.step_(p.params, p.objective, method.init(p.params), seed=1, lr=0.1)
    declared = method.cost(p.params)
    assert info.queries == p.calls == declared.queries
    assert info.backwards == declared.backwards


# 6 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_scratch_and_state_are_as_declared(name, live_bytes):
    method = build(name)
    tensors = [torch.zeros(1000, 1000), torch.zeros(300, 1000), torch.zeros(77)]
    for t in tensors:
        t.requires_grad_(method.needs_gradient)
    params = Params((str(i), t) for i, t in enumerate(tensors))
    objective = Closure(lambda: sum(t.sum() for t in tensors))
    cost = method.cost(params)
    slack = 256  # losses and sums of single numbers
    with live_bytes() as counter:
        state = method.init(params)
        for step in range(2):
            state, _ = method.step_(params, objective, state, seed=step, lr=0.0)
    assert counter.live <= cost.state_bytes + slack
    assert counter.peak <= cost.state_bytes + cost.scratch_bytes + slack
    assert counter.live >= 0.99 * cost.state_bytes, "declares more than it keeps"


@pytest.mark.parametrize("name", ["ft_sgd", "ft_adamw"])
def test_gradients_die_with_the_step(name, problem):
    p = problem(requires_grad=True)
    train(p, name)
    assert all(t.grad is None for t in p.tensors.values())


# 7 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_docstring_evaluates_its_formula(name):
    module = importlib.import_module(f"zo_core.methods.{name}")
    (test,) = [
        t for t in doctest.DocTestFinder(recurse=False).find(module) if t.name == module.__name__
    ]
    assert len(test.examples) >= 3, "state the formula and evaluate it in plain code"
    assert ".step_(" in test.docstring, "the example compares with a step of the method"
    assert doctest.DocTestRunner().run(test).failed == 0
    assert module.TITLE and module.PAPER


# 8 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINS)
def test_loss_falls(name, problem):
    p = problem(requires_grad=build(name).needs_gradient)
    before = p.loss().item()
    train(p, name, steps=200)
    assert p.loss().item() < 0.5 * before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", METHODS)
def test_a_loss_that_is_not_finite_is_raised(name, value, problem):
    method = build(name)
    p = problem(requires_grad=method.needs_gradient)
    before = p.flat()
    objective = Closure(lambda: p.loss() * value)
    with pytest.raises(NonFiniteLoss, match="loss"):
        method.step_(p.params, objective, method.init(p.params), seed=1, lr=0.1)
    assert torch.allclose(p.flat(), before, atol=1e-6)


# 9 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", ZEROTH)
def test_a_replayed_trajectory_gives_the_live_weights(name, dtype, problem, tmp_path):
    live, again = problem(dtype), problem(dtype)
    steps, lr, run_seed = 30, 0.02, 9
    method = build(name)
    state = method.init(live.params)
    path = tmp_path / "trajectory.bin"
    with TrajectoryWriter(path, Trajectory(name, {}, lr, run_seed)) as log:
        for step in range(steps):
            seed = derive_seed(run_seed, step)
            state, info = method.step_(live.params, live.objective, state, seed=seed, lr=lr)
            log.append(info.estimate, lr)
    Trajectory.read(path).replay_(again.params)
    drift = steps * DRIFT_ULPS * torch.finfo(dtype).eps * 4  # of restores; entries are below 4
    assert (live.flat() - again.flat()).abs().max() <= drift
    assert not torch.equal(again.flat(), problem(dtype).flat())
