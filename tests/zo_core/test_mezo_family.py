"""What the relatives of MeZO do that the laws don't ask: their formulas, schedules and blocks."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from zo_core import (
    Closure,
    Params,
    Term,
    Trajectory,
    derive_seed,
    directions,
    methods,
    noise,
    sample,
)
from zo_core.base import no_span
from zo_core.blocks import blocks
from zo_core.estimators.block_scaled import LEAST, normalised, sum_of_squares
from zo_core.structured.block import OnBlocks
from zo_core.structured.scaled import Scaled
from zo_core.trajectory import TrajectoryWriter
from zo_core.writing import observed
from zo_core.zeroth_order import look

GAUSSIAN = directions.build("gaussian")


def z_of(params, seed, law="gaussian"):
    """Return the direction of ``seed``, flat, float64."""
    parts = [sample(law, seed, p.key, p.tensor.numel()).double() for p in params]
    return torch.cat(parts)


def steps(method, p, count, lr=0.01, first=0, state=None):
    """Take steps, and yield what each tells."""
    state = method.init(p.params) if state is None else state
    for step in range(first, first + count):
        seed = derive_seed(0, step)
        state, info = method.step_(p.params, p.objective, state, seed=seed, lr=lr)
        yield info


def loss_at(problem, flat):
    """Return the quadratic's value at a place given flat."""
    p = problem(torch.float64)
    put(p.params, flat)
    return p().item()


def put(params, flat):
    sizes = [t.numel() for t in params.tensors]
    for tensor, part in zip(params.tensors, flat.split(sizes), strict=True):
        tensor.detach().copy_(part.view(tensor.shape))


def central(problem, theta, z, eps):
    plus, minus = loss_at(problem, theta + eps * z), loss_at(problem, theta - eps * z)
    return (plus - minus) / (2 * eps)


# n-SPSA ------------------------------------------------------------------------------------------


def test_n_spsa_by_seeds_is_n_spsa_by_a_gradient_buffer(problem):
    p, lr, eps, n = problem(torch.float64), 0.01, 1e-3, 5
    theta = p.flat()
    for step, info in enumerate(steps(methods.build("mezo_n_spsa", samples=n), p, 4, lr)):
        buffer = torch.zeros_like(theta)
        for k in range(n):
            z = z_of(p.params, derive_seed(derive_seed(0, step), "sample", k))
            buffer += central(problem, theta, z, eps) * z / n
        theta = theta - lr * buffer
        assert torch.allclose(p.flat(), theta, rtol=1e-6, atol=1e-7)
        assert (info.queries, len(info.estimate.terms)) == (2 * n, n)


@pytest.mark.parametrize("n", [1, 3])
def test_n_spsa_second_moment_is_that_of_gaussian_directions(n):
    # E||g||^2 = (d + n + 1)/n ||grad||^2; the paper's (d + n - 1)/n belongs to the sphere.
    d, draws, gradient = 2, 3000, torch.tensor([1.0, -2.0], dtype=torch.float64)
    theta, zeros = torch.zeros(d, dtype=torch.float64), torch.zeros(d, dtype=torch.float64)
    params, copy = Params([("w", theta)]), Params([("w", zeros)])
    method, objective = methods.build("mezo_n_spsa", samples=n), Closure(lambda: gradient @ theta)
    sizes = []
    for draw in range(draws):
        plan = method.estimator.plan(params, derive_seed(2, draw), 0)
        losses = look(method.settings.perturber, params, objective, plan, no_span)
        estimate = method.estimator.estimate(plan, losses, 0)
        zeros.zero_()
        estimate.distribution.add_(copy, estimate.terms)
        sizes.append(zeros.square().sum() / gradient.square().sum())
    seen = torch.stack(sizes)
    error = seen.std() / draws**0.5
    assert abs(seen.mean() - (d + n + 1) / n) < 4 * error
    assert abs(seen.mean() - (d + n - 1) / n) > 6 * error


def test_n_spsa_grows_by_one_every_so_many_steps(problem):
    method = methods.build("mezo_n_spsa", samples=3, growth_steps=2, scale_lr=True)
    told = list(steps(method, problem(), 7, lr=0.001))
    n = [1, 1, 2, 2, 3, 3, 3]
    assert [info.queries for info in told] == [2 * k for k in n]
    assert [info.lr for info in told] == [0.001 * k for k in n]
    constant = list(steps(methods.build("mezo_n_spsa", samples=3), problem(), 2, lr=0.001))
    assert [(info.queries, info.lr) for info in constant] == [(6, 0.001)] * 2


@pytest.mark.parametrize("options", [{"samples": 0}, {"growth_steps": -1}, {"eps": 0.0}])
def test_n_spsa_refuses_what_measures_nothing(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be"):
        methods.build("mezo_n_spsa", **options)


# one side, one point -----------------------------------------------------------------------------


def test_one_sided_looks_at_theta_first(problem):
    p = problem(torch.float64)
    before = p().item()
    (info,) = steps(methods.build("mezo_one_sided"), p, 1)
    assert info.losses[0] == before and info.queries == 2


def test_one_sided_is_off_the_slope_by_half_eps_of_the_curvature(problem):
    p, eps = problem(torch.float64), 0.5
    theta, gradient = p.flat(), p.gradient()
    (info,) = steps(methods.build("mezo_one_sided", eps=eps), p, 1)
    (term,) = info.estimate.terms
    z = z_of(p.params, term.seed)
    slope = (gradient @ z).item()
    curvature = loss_at(problem, theta + z) + loss_at(problem, theta - z)
    curvature -= 2 * loss_at(problem, theta)  # z^T H z, exact on a quadratic
    assert term.coefficient == pytest.approx(slope + eps / 2 * curvature, rel=1e-5)
    assert abs(term.coefficient - slope) > 0.1


def test_residual_moves_nothing_in_its_first_step_and_then_uses_the_loss_before(problem):
    p, eps, lr = problem(torch.float64), 0.1, 0.01
    method = methods.build("mezo_residual", eps=eps)
    before = p.flat()
    told = steps(method, p, 3, lr)
    first = next(told)
    assert torch.allclose(p.flat(), before, rtol=0, atol=1e-14)
    assert first.queries == 1 and first.estimate.terms[0].coefficient == 0.0
    last = first.losses[0]
    for step, info in enumerate(told, start=1):
        z = z_of(p.params, derive_seed(0, step))
        now = loss_at(problem, before + eps * z)
        before = before - lr * (now - last) / eps * z
        last = now
        assert torch.allclose(p.flat(), before, rtol=1e-5, atol=1e-6)  # losses are float32
        assert info.queries == 1


# blocks ------------------------------------------------------------------------------------------


def names_of(*names):
    return Params((name, torch.zeros(2, 3)) for name in names)


@pytest.mark.parametrize(
    "names,expected",
    [
        (
            "model.decoder.embed_tokens.weight model.decoder.embed_positions.weight "
            "model.decoder.final_layer_norm.weight model.decoder.final_layer_norm.bias "
            "model.decoder.layers.0.fc1.weight model.decoder.layers.10.fc1.weight",
            "model.decoder.embed_tokens model.decoder.embed_positions "
            "model.decoder.final_layer_norm model.decoder.layers.0 model.decoder.layers.10",
        ),
        (
            "roberta.embeddings.word_embeddings.weight roberta.embeddings.LayerNorm.weight "
            "roberta.encoder.layer.0.attention.self.query.weight lm_head.bias "
            "roberta.encoder.layer.1.output.dense.bias lm_head.dense.weight",
            "roberta.embeddings roberta.encoder.layer.0 lm_head roberta.encoder.layer.1",
        ),
        (
            "model.layers.3.q_proj.lora_A.0.weight model.layers.3.q_proj.lora_B.0.weight",
            "model.layers.3",
        ),
        ("score.weight score.bias", "score"),
        ("w", "w"),
    ],
)
def test_blocks_are_layers_and_the_modules_beside_them(names, expected):
    assert [block.name for block in blocks(names_of(*names.split()))] == expected.split()


def test_every_tensor_is_in_one_block(problem):
    params = problem().params
    held = blocks(params)
    assert [b.name for b in held] == ["layers.0", "layers.1", "head"]
    assert sorted(p.key for b in held for p in b.params) == sorted(p.key for p in params)
    assert sum(b.elements for b in held) == params.elements


def test_layerwise_directions_of_blocks_are_distinct():
    # Published code draws every block from one seed; here shapes are equal and names differ too.
    params = names_of("layers.0.w", "layers.1.w", "layers.2.w")
    plan = methods.build("mezo_layerwise").estimator.plan(params, 3, None)
    (one,) = plan.looks
    seeds = [point[0].seed for point in one.points]
    assert len(seeds) == 6 and len(set(seeds)) == 3


def test_layerwise_looks_at_every_block_alone_from_one_theta(problem):
    p, eps, lr = problem(torch.float64), 1e-3, 0.01
    theta, expected = p.flat(), p.flat()
    (info,) = steps(methods.build("mezo_layerwise"), p, 1, lr)
    assert info.queries == 2 * len(blocks(p.params)) == 6
    for n, block in enumerate(blocks(p.params)):
        inside = torch.cat(
            [torch.full((t.tensor.numel(),), t.key in block.keys) for t in p.params]
        )
        z = z_of(p.params, derive_seed(derive_seed(0, 0), "block", n)) * inside
        expected = expected - lr * central(problem, theta, z, eps) * z
    assert torch.allclose(p.flat(), expected, rtol=1e-6)


def moved_blocks(p, before):
    now = {n: t.detach() for n, t in p.tensors.items()}
    return {
        block.name
        for block in blocks(p.params)
        if any(not torch.equal(now[q.name], before[q.name]) for q in block.params)
    }


@pytest.mark.parametrize("restore", ["arithmetic", "exact"])
def test_block_coordinate_steps_leave_other_blocks_bit_identical(restore, problem):
    p = problem(torch.float32)
    method = methods.build("mezo_block", order="cyclic", restore=restore)
    seen = []
    told = steps(method, p, 6)
    for _ in range(6):
        before = {n: t.detach().clone() for n, t in p.tensors.items()}
        next(told)
        seen.append(moved_blocks(p, before))
    assert seen == [{"layers.0"}, {"layers.1"}, {"head"}] * 2


def test_cyclic_blocks_go_on_where_the_step_before_ended(problem):
    p = problem(torch.float32)
    told = steps(
        methods.build("mezo_block", order="cyclic", blocks_per_step=2, restore="exact"), p, 3
    )
    seen = []
    for _ in range(3):
        before = {n: t.detach().clone() for n, t in p.tensors.items()}
        next(told)
        seen.append(moved_blocks(p, before))
    assert seen == [{"layers.0", "layers.1"}, {"head", "layers.0"}, {"layers.1", "head"}]


def test_block_choice_is_uniform_over_subsets():
    params = names_of(*(f"layers.{n}.w" for n in range(4)))
    estimator = methods.build("mezo_block", blocks_per_step=2).estimator
    counts: dict[frozenset, int] = {}
    draws = 3000
    for draw in range(draws):
        plan = estimator.plan(params, derive_seed(8, draw), 0)
        (cover,) = plan.distribution.cover.values()
        counts[cover] = counts.get(cover, 0) + 1
    expected = draws / 6
    assert len(counts) == 6
    chi = sum((seen - expected) ** 2 / expected for seen in counts.values())
    assert chi < 20.5  # the 0.999 quantile of chi squared with 5 degrees of freedom


@pytest.mark.parametrize("count", [1, 2, 5])
def test_unbiased_block_steps_are_multiplied_by_the_inverse_probability(count, problem):
    terms = {}
    for unbiased in (False, True):
        method = methods.build("mezo_block", blocks_per_step=count, unbiased=unbiased)
        (info,) = steps(method, problem(), 1)
        (terms[unbiased],) = info.estimate.terms
    assert terms[True].seed == terms[False].seed
    ratio = terms[True].coefficient / terms[False].coefficient
    assert ratio == pytest.approx(3 / min(count, 3), rel=1e-6)


def test_block_steps_draw_noise_for_their_blocks_alone(problem, monkeypatch):
    visited = []
    real = type(GAUSSIAN).add_

    def counting(self, params, terms):
        visited.extend(p.name for p in params)
        real(self, params, terms)

    monkeypatch.setattr(type(GAUSSIAN), "add_", counting)
    p = problem()
    list(steps(methods.build("mezo_block", order="cyclic"), p, 2))
    assert visited == ["layers.0.weight", "layers.0.bias"] * 3 + ["layers.1.weight"] * 3


@pytest.mark.parametrize(
    "options,says",
    [
        ({"blocks_per_step": 0}, "blocks_per_step must be 1 or more"),
        ({"order": "cycle"}, "Did you mean 'cyclic'"),
    ],
)
def test_block_choices_that_are_not_there_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        methods.build("mezo_block", **options)


# directions on blocks, and scaled ----------------------------------------------------------------


def test_structured_directions_are_the_bases_own_where_they_live(problem):
    p = problem(torch.float64)
    first, second = blocks(p.params)[:2]
    factors = {q.key: 1.0 + n for n, q in enumerate(p.params)}
    cover = {1: first.keys, 2: first.keys | second.keys}
    z = {seed: z_of(p.params, seed) for seed in (1, 2)}

    def per_entry(value):
        return torch.cat([torch.full((q.tensor.numel(),), value(q)) for q in p.params]).double()

    def on(keys):
        return per_entry(lambda q: float(q.key in keys))

    for law, expected in (
        (OnBlocks(GAUSSIAN, cover), 2 * z[1] * on(cover[1]) - 3 * z[2] * on(cover[2])),
        (Scaled(GAUSSIAN, factors), (2 * z[1] - 3 * z[2]) * per_entry(lambda q: factors[q.key])),
    ):
        copies = Params((q.name, torch.zeros_like(q.tensor)) for q in p.params)
        law.add_(copies, [Term(1, 2.0), Term(2, -3.0)])
        assert torch.allclose(torch.cat([t.view(-1) for t in copies.tensors]), expected)


@pytest.mark.parametrize("name", ["mezo_layerwise", "mezo_block", "mezo_variance_modified"])
def test_structured_directions_are_written_as_they_are_drawn(name, problem):
    # The update goes by pieces where it rounds, decays or is observed, else through ``add_``.
    whole, by_pieces = problem(torch.float32), problem(torch.float32)
    list(steps(methods.build(name), whole, 3))
    with observed(lambda *_: None):
        list(steps(methods.build(name), by_pieces, 3))
    assert torch.equal(whole.flat(), by_pieces.flat())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("way", ["stochastic", "observed"])
def test_blocks_that_are_not_chosen_keep_every_bit(way, dtype):
    tensors = {f"layers.{n}.weight": torch.full((4, 3), -0.0, dtype=dtype) for n in range(3)}
    params = Params(tensors.items())
    method = methods.build("mezo_block", order="cyclic", restore="exact")
    if way == "stochastic":
        method = method.configured(rounding="stochastic")
    objective = Closure(lambda: sum(t.double().sum() for t in tensors.values()))
    with observed(lambda *_: None) if way == "observed" else nullcontext():
        method.step_(params, objective, method.init(params), seed=1, lr=0.1)
    moved, *rest = tensors.values()
    assert (moved != 0).all()
    assert all((t == 0).all() and t.signbit().all() for t in rest)


# scaled by block ---------------------------------------------------------------------------------


def test_parameter_norms_are_over_the_root_of_the_count(problem):
    p = problem(torch.float64)
    d = methods.build("mezo_variance_modified").estimator.init(p.params)
    sizes = [
        torch.cat([q.tensor.detach().reshape(-1) for q in b.params]) for b in blocks(p.params)
    ]
    expected = torch.stack([t.norm() / t.numel() ** 0.5 for t in sizes])
    assert torch.allclose(torch.tensor(d).double(), expected / expected.mean(), rtol=1e-6)
    assert sum(d) / len(d) == pytest.approx(1.0, rel=1e-6)


def test_sums_of_squares_do_not_hang_on_the_number_of_threads():
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(noise.PIECE - 3 * n, generator=generator) for n in range(8)]
    threads = torch.get_num_threads()
    try:
        sums = []
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            sums.append([sum_of_squares(part).item() for part in parts])
    finally:
        torch.set_num_threads(threads)
    assert sums[0] == sums[1] == sums[2]
    expected = [part.double().norm().item() ** 2 for part in parts]
    assert sums[0] == pytest.approx(expected, rel=1e-12)


def test_a_block_without_size_is_scaled_by_one_and_a_small_one_is_bounded():
    assert normalised([0.0, 2.0, 4.0]) == pytest.approx((1.0, 2 / 3, 4 / 3))
    assert normalised([0.0, 0.0]) == (1.0, 1.0)
    assert normalised([1e-9, 2.0])[0] == pytest.approx(LEAST)


@pytest.mark.parametrize("name", ["mezo_variance_modified", "mezo_expectation_modified"])
def test_gradient_norms_are_measured_once_and_used_from_the_second_step_on(name, problem):
    p, eps, lr = problem(torch.float64), 1e-3, 0.01
    method = methods.build(name, scale="gradient_norm")
    theta = p.flat()
    told = steps(method, p, 2, lr)
    first = next(told)
    held = blocks(p.params)
    inside = [
        torch.cat([torch.full((t.tensor.numel(),), t.key in b.keys) for t in p.params]).double()
        for b in held
    ]
    sizes = []
    for n, (block, mask) in enumerate(zip(held, inside, strict=True)):
        z = z_of(p.params, derive_seed(derive_seed(derive_seed(0, 0), "measure"), "block", n))
        sizes.append(abs(central(problem, theta, z * mask, eps)) / block.elements**0.5)
    d = torch.tensor(sizes) / torch.tensor(sizes).mean()
    assert torch.allclose(torch.tensor(first.estimate.extra), d.float(), rtol=1e-4)
    assert first.queries == 2 + 2 * len(held)
    z = z_of(p.params, derive_seed(0, 0))
    theta = theta - lr * central(problem, theta, z, eps) * z  # the first step is plain MeZO
    assert torch.allclose(p.flat(), theta, rtol=1e-6)

    second = next(told)
    by_entry = sum(x * mask for x, mask in zip(first.estimate.extra, inside, strict=True))
    z = z_of(p.params, derive_seed(0, 1))
    along = by_entry * z if name == "mezo_variance_modified" else z
    theta = theta - lr * central(problem, theta, z / by_entry, eps) * along
    assert torch.allclose(p.flat(), theta, rtol=1e-5)
    assert second.queries == 2 and second.estimate.extra == ()


def test_scales_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="Did you mean 'gradient_norm'"):
        methods.build("mezo_variance_modified", scale="gradient_norms")


# conservative ------------------------------------------------------------------------------------


def test_conservative_keeps_the_best_of_three(problem):
    kept = set()
    for lr in (0.001, 0.3):
        p = problem(torch.float64)
        theta = p.flat()
        for step, info in enumerate(steps(methods.build("zo_conservative"), p, 12, lr)):
            z = z_of(p.params, derive_seed(0, step))
            g = central(problem, theta, z, 1e-3) * z
            tried = {s: theta - s * lr * g for s in (0, 1, -1)}
            best = min(tried, key=lambda s: loss_at(problem, tried[s]))
            theta = tried[best]
            kept.add(best)
            assert torch.allclose(p.flat(), theta, rtol=1e-5, atol=1e-6)
            (term,), (c,) = info.estimate.terms, info.estimate.extra
            assert term.coefficient == best * c and info.queries == 5
    assert kept == {0, 1}


def test_conservative_goes_against_the_estimate_where_that_is_better(problem):
    p = problem(torch.float64)
    theta = p.flat()
    losses = iter([2.0, 1.0, 5.0, 6.0, 4.0])  # + and -, then theta, along -g, along g
    closure = Closure(lambda: p() * 0 + next(losses))
    _, info = methods.build("zo_conservative").step_(p.params, closure, None, seed=1, lr=0.01)
    c = (2.0 - 1.0) / 2e-3
    assert info.estimate.terms == (Term(1, -info.estimate.extra[0]),)
    assert torch.allclose(p.flat(), theta + 0.01 * c * z_of(p.params, 1), rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_conservative_stays_at_the_same_bits_where_restore_is_exact(dtype, problem):
    p = problem(dtype)
    before = p.flat()
    method = methods.build("zo_conservative", restore="exact", weight_decay=0.5)
    (info,) = steps(method, p, 1, lr=100.0)
    assert info.estimate.terms[0].coefficient == 0.0 and info.estimate.extra[0] != 0.0
    assert torch.equal(p.flat(), before)


def test_conservative_steps_that_stayed_are_retraced_to_the_same_bits(problem, tmp_path):
    live, again = problem(torch.bfloat16), problem(torch.bfloat16)
    options, lr = {"eps": 0.05}, 0.1
    method, path = methods.build("zo_conservative", **options), tmp_path / "trajectory.bin"
    with TrajectoryWriter(path, Trajectory("zo_conservative", options, lr, 0)) as log:
        told = list(steps(method, live, 20, lr))
        for info in told:
            log.append(info)
    stayed = [info.estimate.terms[0].coefficient == 0.0 for info in told]
    assert any(stayed) and not all(stayed)
    Trajectory.read(path).replay_(again.params, retrace=True)
    assert torch.equal(again.flat(), live.flat())
