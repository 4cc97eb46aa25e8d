"""Momentum, Adam, sign, LOZO, HiZOO, FZOO and MEAZO against torch's own rules and plain code."""

from __future__ import annotations

import pytest
import torch

from zo_core import Closure, Params, derive_seed, directions, methods, noise, sample
from zo_core.base import GradientEstimate, Term, no_span
from zo_core.estimators.low_rank import LowRankTwoPoint
from zo_core.estimators.normalised import spread
from zo_core.structured.low_rank import LowRank, columns_of
from zo_core.updates.momentum import Momentum, ReplayedMomentum
from zo_core.writing import Writer
from zo_core.zeroth_order import ZerothOrder, look

LR = 0.03


def dense(estimate, params):
    """Return the estimate as tensors, one for each parameter, in its dtype."""
    zeros = Params((p.name, torch.zeros_like(p.tensor)) for p in params)
    estimate.distribution.add_(zeros, estimate.terms)
    return [z.tensor for z in zeros]


def take(p, method, state, step, lr=LR):
    return method.step_(p.params, p.objective, state, seed=derive_seed(3, step), lr=lr)


# --------------------------------------------------------------- update rules, dense and replayed


def torch_twin(name, tensors):
    if name == "mezo_momentum":
        return torch.optim.SGD(tensors, lr=LR, momentum=0.9)
    return torch.optim.AdamW(tensors, lr=LR, weight_decay=0.1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "name,options",
    [("mezo_momentum", {}), ("mezo_adam", {"weight_decay": 0.1, "decay_group": "all"})],
)
def test_dense_rules_do_what_torch_does_with_the_same_gradient(name, options, dtype, problem):
    p = problem(dtype)
    method = methods.build(name, eps=1e-2, **options)
    twins = [torch.nn.Parameter(t.detach().clone()) for t in p.params.tensors]
    optimizer, state = torch_twin(name, twins), method.init(p.params)
    tolerance = {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 2e-5}
    for step in range(25):
        state, info = take(p, method, state, step)
        for twin, g in zip(twins, dense(info.estimate, p.params), strict=True):
            twin.grad = g
        optimizer.step()
        for twin, tensor in zip(twins, p.params.tensors, strict=True):
            torch.testing.assert_close(
                tensor.detach(), twin.detach(), **{"atol": 1e-5, **tolerance}
            )


@pytest.mark.parametrize("name", ["mezo_momentum", "mezo_adam"])
def test_a_replayed_rule_is_the_dense_one_while_all_fits_in_its_window(name, problem):
    ends = []
    for storage in ("dense", "replay"):
        p = problem(torch.float64)
        method = methods.build(name, storage=storage, window=6)
        state = method.init(p.params)
        for step in range(7):
            if step == 6:
                ends.append(p.flat())
            state, _ = take(p, method, state, step)
        ends.append(p.flat())
    within, beyond = slice(0, 3, 2), slice(1, 4, 2)
    torch.testing.assert_close(*ends[within], rtol=1e-10, atol=1e-12)
    assert not torch.allclose(*ends[beyond], rtol=1e-6)  # the window forgets, and the other not


@pytest.mark.parametrize("name", ["mezo_momentum", "mezo_adam"])
def test_a_window_forgets_what_is_older(name):
    w = torch.zeros(5, dtype=torch.float64)
    params = Params([("w", w)])
    rule = methods.build(name, storage="replay", window=3).update
    law, state, given = directions.build("gaussian"), rule.init(params), []
    for seed in range(8):
        terms = (Term(seed, 0.5 * seed - 1.25), Term(seed + 100, 0.25))
        given.append(sum(t.coefficient * z(t.seed, params) for t in terms))
        w.zero_()
        state, _ = rule.apply_(params, GradientEstimate(law, terms), state, 1.0, Writer())
    newest = given[:-4:-1]
    if name == "mezo_momentum":
        expected = -sum(0.9**j * g for j, g in enumerate(newest))
    else:
        m = sum(0.9**j * g for j, g in enumerate(newest)) * 0.1 / (1 - 0.9**3)
        v = sum(0.999**j * g**2 for j, g in enumerate(newest)) * 0.001 / (1 - 0.999**3)
        expected = -m / (v.sqrt() + 1e-8)
    torch.testing.assert_close(w, expected, rtol=1e-10, atol=1e-12)


def z(seed, params):
    return sample("gaussian", seed, params[0].key, params[0].tensor.numel()).double()


def test_a_window_over_several_distributions_is_the_dense_rule(problem):
    ends = []
    for rule in (Momentum(0.9), ReplayedMomentum(0.9, 8)):
        p = problem(torch.float64)
        method = ZerothOrder(LowRankTwoPoint(1e-3, rank=1, interval=2), rule)
        state = method.init(p.params)
        for step in range(6):
            state, _ = take(p, method, state, step, lr=0.002)
        ends.append(p.flat())
    torch.testing.assert_close(*ends, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "name,options",
    [
        ("mezo_momentum", {}),
        ("mezo_adam", {}),
        ("mezo_adam", {"storage": "replay"}),
        ("zo_sign", {}),
        ("hizoo", {"smoothing": 0.01}),
    ],
)
def test_steps_do_not_hang_on_the_pieces_they_are_made_in(name, options, problem, monkeypatch):
    ends = []
    for piece in (noise.PIECE, 4):
        monkeypatch.setattr(noise, "PIECE", piece)
        p, method = problem(), methods.build(name, **options)
        state = method.init(p.params)
        for step in range(3):
            state, _ = take(p, method, state, step, lr=0.01)
        ends.append(p.flat())
    assert torch.equal(*ends)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["mezo_momentum", "mezo_adam", "hizoo"])
def test_states_are_float32_whatever_the_weights(name, dtype, problem):
    p = problem(dtype)
    method = methods.build(name)
    state = method.init(p.params)
    state, _ = take(p, method, state, 0)
    tensors = [t for t in torch.utils._pytree.tree_leaves(state) if isinstance(t, torch.Tensor)]
    assert tensors and all(t.dtype == torch.float32 for t in tensors)
    assert torch.isfinite(p.flat()).all()


def test_every_nonzero_entry_moves_by_the_learning_rate(problem):
    p = problem(torch.float64)
    before, method = p.flat(), methods.build("zo_sign")
    _, info = take(p, method, method.init(p.params), 0, lr=0.25)
    g = torch.cat([t.reshape(-1) for t in dense(info.estimate, p.params)])
    torch.testing.assert_close(p.flat() - before, -0.25 * g.sign(), rtol=0, atol=1e-12)
    assert (g > 0).any() and (g < 0).any()  # of both signs, so the sign is not the scalar's


def test_no_entry_moves_where_the_estimate_is_zero():
    w = torch.ones(4)
    params, method = Params([("w", w)]), methods.build("zo_sign")
    method.step_(params, Closure(lambda: torch.tensor(2.0)), method.init(params), seed=1, lr=0.5)
    assert torch.allclose(w, torch.ones(4))


@pytest.mark.parametrize(
    "name,options,message",
    [
        ("mezo_adam", {"storage": "dens"}, "Did you mean 'dense'"),
        ("mezo_momentum", {"storage": "replay", "window": 0}, "window must be 1"),
        ("mezo_adam", {"beta2": 1.0}, "beta2 must be in"),
        ("mezo_adam", {"adam_eps": 0.0}, "adam_eps must be positive"),
        ("lozo", {"rank": 0}, "rank must be 1"),
        ("lozo", {"interval": 0}, "interval must be 1"),
        ("hizoo", {"smoothing": 1.0}, "smoothing must be in"),
        ("fzoo", {"candidates": 1}, "candidates must be 2"),
        ("meazo", {"beta": 1.0}, "beta must be in"),
        ("meazo", {"zeta": 0.0}, "zeta must be positive"),
    ],
)
def test_options_that_make_no_method_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        methods.build(name, **options)


# ------------------------------------------------------------------------------------------- LOZO


def drawn(law, tensor, terms, name="w"):
    params = Params([(name, torch.zeros_like(tensor))])
    law.add_(params, terms)
    return params[0].tensor, params[0].key


@pytest.mark.parametrize("shape", [(9, 14), (9, 7, 2)], ids=str)
def test_a_matrix_direction_is_two_factors_over_the_root_of_their_rank(shape):
    law, terms = LowRank(3, v_seed=5), [Term(1, 2.0), Term(8, -0.5)]
    got, key = drawn(law, torch.zeros(shape, dtype=torch.float64), terms)
    v = sample("gaussian", derive_seed(5, "V"), key, 14 * 3).view(14, 3).double()
    u = sum(
        t.coefficient * sample("gaussian", derive_seed(t.seed, "U"), key, 27).view(9, 3).double()
        for t in terms
    )
    torch.testing.assert_close(got.view(9, 14), u @ v.T / 3**0.5, rtol=1e-10, atol=1e-12)
    assert torch.linalg.matrix_rank(got.view(9, 14)) == 3


@pytest.mark.parametrize("size", [5, 14, 33, 1000])
def test_a_matrix_direction_does_not_hang_on_the_pieces_it_is_drawn_in(size, monkeypatch):
    law, tensor = LowRank(2, v_seed=5), torch.zeros(9, 14)
    whole, _ = drawn(law, tensor, [Term(1, 2.0)])
    monkeypatch.setattr(noise, "PIECE", size)
    assert torch.equal(drawn(law, tensor, [Term(1, 2.0)])[0], whole)


def test_what_low_rank_would_not_make_smaller_is_gaussian():
    terms, law = [Term(1, 2.0)], LowRank(2, v_seed=5)
    for shape in [(7,), (), (3, 5), (1, 900)]:
        got, _ = drawn(law, torch.zeros(shape), terms)
        assert torch.equal(got, drawn(directions.build("gaussian"), got, terms)[0])
    assert columns_of(Params([("w", torch.zeros(6, 7))])[0], 2) == 7


def test_low_rank_directions_have_unit_covariance():
    draws, d = 8_000, 12
    rows = [
        drawn(LowRank(1, derive_seed(1, i)), torch.zeros(3, 4), [Term(derive_seed(2, i), 1.0)])[0]
        for i in range(draws)
    ]
    u = torch.stack(rows).view(draws, d).double()
    # u_ij^2 = a^2 b^2 has variance 8, the largest of all products of entries.
    assert (u.T @ u / draws - torch.eye(d)).abs().max() < 5 * (8 / draws) ** 0.5


def test_one_factor_is_held_for_an_interval_and_the_other_is_not(problem):
    p = problem(torch.float64)
    method = methods.build("lozo", rank=1, interval=3)
    state, held = method.init(p.params), []
    for step in range(7):
        plan = method.estimator.plan(p.params, derive_seed(3, step), state[0])
        held.append((plan.distribution.v_seed, plan.note[0]))
        state, _ = take(p, method, state, step, lr=0.0)
    seeds, u = zip(*held, strict=True)
    assert len(set(seeds[:3])) == len(set(seeds[3:6])) == 1
    assert len({seeds[0], seeds[3], seeds[6]}) == 3 and len(set(u)) == 7


# ------------------------------------------------------------------------------------------ HiZOO


def hizoo_at(h, problem, smoothing, draws=1500):
    """Yield (estimate as tensors, h after it) at one theta, from ``h`` afresh each time."""
    p = problem(torch.float64)
    method = methods.build("hizoo", smoothing=smoothing, eps=1e-2)
    for draw in range(draws):
        state = {k: v.clone() for k, v in h.items()}
        plan = method.estimator.plan(p.params, derive_seed(11, draw), state)
        seen = look(method.settings.perturber, p.params, p.objective, plan, no_span)
        estimate = method.estimator.estimate(plan, seen, state)
        state = method.estimator.advance(p.params, plan, estimate, state)
        g = torch.cat([t.reshape(-1) for t in dense(estimate, p.params)])
        yield g, torch.cat([state[q.key] for q in p.params]).double()


@pytest.fixture
def h(problem):
    generator = torch.Generator().manual_seed(2)
    return {
        q.key: torch.rand(q.tensor.numel(), generator=generator) * 3 + 0.2
        for q in problem(torch.float64).params
    }


def far(rows, expected):
    return ((rows.mean(0) - expected).abs() / (rows.std(0) / len(rows) ** 0.5)).max()


def test_hizoo_estimates_the_gradient_over_its_diagonal(h, problem):
    p = problem(torch.float64)
    rows = torch.stack([g for g, _ in hizoo_at(h, problem, smoothing=0.0)])
    flat = torch.cat([h[q.key] for q in p.params]).double()
    assert far(rows, p.gradient() / flat) < 4
    assert far(rows, p.gradient()) > 8


def test_what_hizoo_learns_is_the_diagonal_of_the_hessian_and_a_trace(h, problem):
    p = problem(torch.float64)
    blocks = (*p.layers, p.head)
    a = torch.cat([b.scale[n].reshape(-1) for b in blocks for n in b._parameters])
    flat = torch.cat([h[q.key] for q in p.params]).double()
    share = 0.5
    learned = torch.stack([new for _, new in hizoo_at(h, problem, smoothing=share)])
    estimates = (learned - (1 - share) * flat) / share
    assert far(estimates, a + flat * (a / flat).sum() / 2) < 4


def test_hizoo_learns_with_the_published_smoothing():
    w = torch.zeros(1000)
    params, method = Params([("w", w)]), methods.build("hizoo")
    state = method.init(params)
    objective = Closure(lambda: 1e4 * (w.double() ** 2).sum())
    state, _ = method.step_(params, objective, state, seed=1, lr=0.0)
    (h,) = state[0].values()
    u = sample("gaussian", 1, params[0].key, 1000)
    expected = 1e-8 * (1e4 * (u.double() ** 2).sum() * u.double() ** 2)
    torch.testing.assert_close(h.double() - 1, expected, rtol=1e-3, atol=2e-7)


# ---------------------------------------------------------------------------------- FZOO and MEAZO


def test_fzoo_times_its_spread_is_unbiased(problem):
    p, eps, draws = problem(torch.float64), 1e-2, 800
    method = methods.build("fzoo", eps=eps, candidates=4).estimator
    rows, norms = [], []
    for draw in range(draws):
        plan = method.plan(p.params, derive_seed(5, draw), None)
        seen = look(methods.build("mezo").settings.perturber, p.params, p.objective, plan, no_span)
        g = torch.cat([t.reshape(-1) for t in dense(method.estimate(plan, seen, None), p.params)])
        rows.append(g * torch.tensor(seen[1:]).double().std(correction=0) / eps)
        norms.append(g @ p.gradient() / p.gradient().norm())
    assert far(torch.stack(rows), p.gradient()) < 4
    assert 0.5 < torch.stack(norms).mean() < 2  # along the gradient it is about a unit vector


@pytest.mark.parametrize("name", ["fzoo", "meazo"])
def test_steps_do_not_hang_on_the_scale_of_the_loss(name):
    ends = []
    for factor in (1.0, 1000.0):
        w = torch.linspace(-1, 2, 20, dtype=torch.float64)
        params, method = Params([("w", w)]), methods.build(name, eps=1e-3)
        state = method.init(params)
        for seed in range(5):
            closure = Closure(lambda w=w, factor=factor: factor * (w**2).sum())
            state, _ = method.step_(params, closure, state, seed=seed, lr=0.01)
        ends.append(w.clone())
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(ends[0], torch.linspace(-1, 2, 20, dtype=torch.float64))


def test_fzoo_stands_still_where_no_candidate_differs():
    w = torch.ones(6, dtype=torch.float64)
    params, method = Params([("w", w)]), methods.build("fzoo", restore="exact")
    losses = iter([0.0] + [1.0] * 8)
    objective = Closure(lambda: torch.tensor(next(losses)))
    _, info = method.step_(params, objective, method.init(params), seed=1, lr=1.0)
    assert torch.equal(w, torch.ones(6, dtype=torch.float64))
    assert info.queries == 9 and all(t.coefficient == 0 for t in info.estimate.terms)


def test_the_spread_is_that_of_the_population():
    seen = [1.0, 2.5, -3.0, 0.25]
    assert spread(seen) == pytest.approx(float(torch.tensor(seen).std(correction=0)), rel=1e-6)


def test_meazo_divides_by_the_root_of_what_it_has_seen(problem):
    p = problem(torch.float64)
    method = methods.build("meazo", beta=0.5)
    state, v = method.init(p.params), 0.0
    for t in range(1, 5):
        state, info = take(p, method, state, t, lr=0.01)
        c = (info.losses[0] - info.losses[1]) / 2e-3
        v = 0.5 * v + 0.5 * c**2
        root = (v / (1 - 0.5**t)) ** 0.5
        assert info.estimate.terms[0].coefficient == pytest.approx(c / root, rel=1e-6)
        assert info.estimate.extra == state[0][1:] == (pytest.approx(v, rel=1e-6),)
        assert info.lr == 0.01


def test_meazo_decays_by_the_rate_alone():
    """On a loss as flat as this one, the inverse of the root is a thousand."""
    ends = []
    for decay in (0.0, 0.5):
        w = torch.ones(6, 5, dtype=torch.float64)
        params, method = Params([("w", w)]), methods.build("meazo", weight_decay=decay)
        closure = Closure(lambda w=w: 1e-4 * w.sum())
        method.step_(params, closure, method.init(params), seed=3, lr=0.01)
        ends.append(w)
    torch.testing.assert_close(ends[1], ends[0] - 0.01 * 0.5, rtol=0, atol=1e-9)


def test_clip_bounds_what_meazo_multiplies_a_direction_by(problem):
    p, method = problem(torch.float64), methods.build("meazo", clip=0.25)
    state, info = take(p, method, method.init(p.params), 1, lr=0.01)
    c = (info.losses[0] - info.losses[1]) / 2e-3
    assert abs(info.estimate.terms[0].coefficient) == 0.25
    assert state[0][1] == pytest.approx(0.001 * c**2, rel=1e-6), "v is of what was measured"
