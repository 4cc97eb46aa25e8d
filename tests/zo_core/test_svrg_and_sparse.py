"""MeZO-SVRG against least squares and its dense form; masks against plain sorting, bit for bit."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from zo_core import Closure, NonFiniteLoss, Params, Term, Trajectory, derive_seed, methods, noise
from zo_core.base import Param, Piece, no_span
from zo_core.directions.gaussian import Gaussian
from zo_core.estimators.annealing import Annealed, Annealing
from zo_core.estimators.restricted import Restricted
from zo_core.estimators.small_weights import SmallEntries
from zo_core.perturbers.standing_at import standing_at
from zo_core.structured import magnitude
from zo_core.structured.gathered import Chosen, Gathered
from zo_core.structured.masks import DenseMask, PackedMask, SmallWeights
from zo_core.trajectory import TrajectoryWriter
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import ZerothOrder, look

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SVRG = ["mezo_svrg", "mezo_svrg_released"]
STORAGES = ["replay", "dense"]
RESTORES = ["arithmetic", "exact"]


def step(method, p, state, n, lr):
    return method.step_(p.params, p.objective, state, seed=derive_seed(3, n), lr=lr)


def run(p, name, steps, lr, **options):
    method = methods.build(name, **options)
    state, infos = method.init(p.params), []
    for n in range(steps):
        state, info = step(method, p, state, n, lr)
        infos.append(info)
    return state, infos


def put(p, flat):
    sizes = [t.numel() for t in p.params.tensors]
    with torch.no_grad():
        for tensor, values in zip(p.params.tensors, flat.split(sizes), strict=True):
            tensor.copy_(values.view(tensor.shape))


def bits(tensor):
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().clone().view(kinds[tensor.itemsize])


# ------------------------------------------------------------------------------------------- svrg


@pytest.mark.parametrize("dtype,tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_replay_and_dense_walk_the_same_trajectory_to_rounding(dtype, tolerance, problem):
    """Theta_ref by the walk is off by a rounding; a loss near 20 divides that by 2 eps."""
    ends, steps = {}, {}
    for storage in STORAGES:
        p = problem(dtype)
        _, steps[storage] = run(p, "mezo_svrg", 12, 0.002, storage=storage, period=4)
        ends[storage] = p.flat()
    torch.testing.assert_close(ends["replay"], ends["dense"], rtol=0, atol=tolerance)
    corrections = [info.estimate.terms[0].coefficient for info in steps["dense"]]
    assert max(abs(c) for n, c in enumerate(corrections) if n % 4) * 0.002 > 10 * tolerance


@pytest.mark.parametrize("restore", RESTORES)
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_correction_is_exactly_zero_at_the_snapshot(dtype, storage, restore, problem):
    p = problem(dtype)
    _, infos = run(p, "mezo_svrg", 4, 0.0, storage=storage, period=4, restore=restore)
    (anchor,) = infos[0].estimate.terms
    for info in infos[1:]:
        correction, again = info.estimate.terms
        assert correction.coefficient == 0.0 and again == anchor
        assert len(set(info.losses)) == 2, "the points of both places are the same"
    _, moved = run(p, "mezo_svrg", 2, 0.01, storage=storage, period=4, restore=restore)
    assert moved[1].estimate.terms[0].coefficient != 0.0


@dataclass
class LeastSquares:
    """The mean of (x theta - y)^2 / 2 over n rows; a minibatch is drawn anew for every draw."""

    d: int = 400
    n: int = 512
    b: int = 64

    def __post_init__(self):
        generator = torch.Generator().manual_seed(1)
        self.generator = generator
        self.x = torch.randn(self.n, self.d, generator=generator, dtype=torch.float64)
        truth = torch.randn(self.d, generator=generator, dtype=torch.float64)
        noise_ = torch.randn(self.n, generator=generator, dtype=torch.float64)
        self.y = self.x @ truth + noise_
        self.theta = torch.zeros(self.d, dtype=torch.float64)
        self.params = Params([("theta", self.theta)])
        self.objective = Closure(lambda: self.loss(self.rows), lambda: self.loss(slice(None)))
        self.draw()

    def draw(self):
        self.rows = torch.randperm(self.n, generator=self.generator)[: self.b]

    def loss(self, rows):
        return 0.5 * (self.x[rows] @ self.theta - self.y[rows]).square().mean()


def total_variance(rows):
    return float((rows - rows.mean(0)).square().sum(1).mean())


def test_variance_of_the_correction_is_far_below_that_of_minibatch_spsa():
    """The table of algorithms.md, 2.1: below 1e-6 for the true form, 2.0 for the released one."""
    p, lr, draws = LeastSquares(), 1e-8, 400
    ours, released = (methods.build(name) for name in SVRG)
    (state, _), _ = ours.step_(p.params, p.objective, ours.init(p.params), seed=1, lr=lr)
    start = p.theta.clone()
    old, info = released.step_(p.params, p.objective, released.init(p.params), seed=1, lr=lr)
    (anchor,) = info.estimate.terms
    plain, corrected, published = [], [], []
    for n in range(draws):
        p.draw()
        p.theta.copy_(start)
        seed = derive_seed(7, n)
        plan = ours.estimator.plan(p.params, seed, state)
        losses = look(ours.settings.perturber, p.params, p.objective, plan, no_span)
        d = ours.estimator.estimate(plan, losses, state).terms[0].coefficient
        z = noise.reference.sample("gaussian", seed, p.params[0].key, p.d).double()
        live = ours.estimator._anchor.order
        c = (losses[live[0]] - losses[live[1]]) / 2e-3
        plain.append(c * z)
        corrected.append(d * z)
        p.theta.copy_(start)
        _, seen = released.step_(p.params, p.objective, old, seed=seed, lr=lr)
        first, second = seen.estimate.terms
        u = [
            t.coefficient
            * noise.reference.sample("gaussian", t.seed, p.params[0].key, p.d).double()
            for t in (first, second)
        ]
        published.append(u[0] + u[1])
    base = total_variance(torch.stack(plain))
    assert anchor.coefficient != 0 and total_variance(torch.stack(corrected)) > 0
    assert total_variance(torch.stack(corrected)) < 1e-6 * base
    assert total_variance(torch.stack(published)) / base == pytest.approx(2.0, rel=0.2)


@pytest.mark.parametrize("storage", STORAGES)
def test_mean_of_corrected_estimates_is_the_change_of_gradient_and_the_anchor(storage, problem):
    p = problem(torch.float64)
    method = methods.build("mezo_svrg", storage=storage, period=3)
    there, anchored = p.gradient(), p.flat()
    (state, _), _ = step(method, p, method.init(p.params), 0, 0.01)
    g_ref = (anchored - p.flat()) / 0.1
    rows = []
    for draw in range(1500):
        plan = method.estimator.plan(p.params, derive_seed(5, draw), state)
        losses = look(method.settings.perturber, p.params, p.objective, plan, no_span)
        estimate = method.estimator.estimate(plan, losses, state)
        copies = Params((q.name, q.tensor.detach().clone()) for q in p.params)
        estimate.distribution.add_(copies, estimate.terms)
        moved = torch.cat([c.tensor.reshape(-1) for c in copies])
        rows.append(moved - p.flat())
    g = torch.stack(rows)
    off = (g.mean(0) - (p.gradient() - there + g_ref)).abs() / (g.std(0) / len(rows) ** 0.5)
    assert off.max() < 4
    assert (p.gradient() - there).abs().max() > 0.5, "else the correction was not tested"


@pytest.mark.parametrize("storage", STORAGES)
def test_corrected_step_looks_at_the_snapshot_itself(storage, problem):
    p = problem(torch.float64)
    method = methods.build("mezo_svrg", storage=storage, period=4, restore="exact")
    anchor, state = p.flat(), method.init(p.params)
    for n in range(3):
        state, _ = step(method, p, state, n, 0.01)
    seen, live = [], p.flat()

    def loss():
        seen.append(p.flat())
        return p()

    p.objective = Closure(loss, loss)
    p.params = Params(p.params.tensors and [(q.name, q.tensor) for q in p.params])  # in one block
    step(method, p, state, 3, 0.0)
    places = [seen[at] for at in method.estimator._anchor.order]
    middle = [(places[0] + places[1]) / 2, (places[2] + places[3]) / 2]
    for expected, found in zip((live, anchor), middle, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert (live - anchor).abs().max() > 0.01


@pytest.mark.parametrize("restore", RESTORES)
@pytest.mark.parametrize("query", [0, 1, 2, 3])
@pytest.mark.parametrize("name,storage", [("mezo_svrg", s) for s in STORAGES] + [(SVRG[1], "")])
def test_theta_is_put_back_when_a_corrected_step_fails(name, storage, query, restore, problem):
    p = problem(torch.float64)
    own = {"storage": storage} if storage else {}
    method = methods.build(name, period=3, restore=restore, **own)
    state = method.init(p.params)
    for n in range(2):
        state, _ = step(method, p, state, n, 0.01)
    before, calls = p.flat(), 0

    def loss():
        nonlocal calls
        calls += 1
        return p() * (float("nan") if calls > query else 1.0)

    p.objective = Closure(loss, loss)
    with pytest.raises(NonFiniteLoss):
        step(method, p, state, 2, 0.01)
    assert calls > query, "else nothing failed"
    torch.testing.assert_close(p.flat(), before, rtol=0, atol=1e-14)
    if restore == "exact" and storage:
        assert torch.equal(p.flat(), before)
    # And the state still tells where the anchor is: the same step again, without the failure.
    again = problem(torch.float64)
    clean = methods.build(name, period=3, restore=restore, **own)
    other = clean.init(again.params)
    for n in range(3):
        other, _ = step(clean, again, other, n, 0.01)
    p.objective = Closure(p.loss, p.loss)
    step(method, p, state, 2, 0.01)
    torch.testing.assert_close(p.flat(), again.flat(), rtol=0, atol=1e-10)


def test_released_form_stands_still_in_the_mean_but_for_the_anchor(problem):
    p = problem(torch.float64)
    method = methods.build("mezo_svrg_released")
    start = p.flat()
    state, _ = step(method, p, method.init(p.params), 0, 1e-4)
    gradient = (start - p.flat()) / 1e-3
    here = p.flat()
    moves = []
    for draw in range(1500):
        put(p, here)
        method.step_(p.params, p.objective, state, seed=derive_seed(6, draw), lr=1e-6)
        moves.append((here - p.flat()) / 1e-6)
    g = torch.stack(moves)
    off = (g.mean(0) - gradient).abs() / (g.std(0) / len(moves) ** 0.5)
    assert off.max() < 4.5


def of_the_released_code(losses, every, divisor, floor):
    """Return the factor before each step, as the code computes it from its list of losses."""
    factor, factors = 1.0, []
    for t in range(len(losses) + 1):
        seen = losses[:t]
        if len(seen) > 4 * every and t % every == 0:
            newest = sum(seen[-every:]) / every
            older = sum(seen[-3 * every : -2 * every]) / every
            if newest / older > 1.05:
                factor = max(factor / divisor, floor)
        factors.append(factor)
    return factors


def test_annealing_divides_when_the_released_code_does():
    generator = torch.Generator().manual_seed(2)
    for every in (1, 2, 5):
        losses = (1 + torch.rand(60, generator=generator)).tolist()
        losses = [torch.tensor(x).item() for x in losses]
        schedule, state, factors = Annealing(1.5, every, 0.05), Annealed(), [1.0]
        for loss in losses:
            state = schedule.after(state, schedule.told([loss]))
            factors.append(state.factor)
        expected = of_the_released_code(losses, every, 1.5, 0.05)
        assert factors == pytest.approx(expected)
        assert 0.05 <= min(expected) < 1


@pytest.mark.parametrize("name", SVRG)
def test_annealing_lowers_both_rates_and_survives_a_resume(name, problem, tmp_path):
    """The loss rises by itself here, so that there is something to anneal."""
    options = {"anneal": 4.0, "anneal_every": 2, "anneal_floor": 0.01, "period": 3}
    p, path, rates = problem(), tmp_path / "trajectory.bin", []
    method = methods.build(name, **options)
    rising = Closure(lambda: p() * 1.3 ** len(rates), lambda: p() * 1.3 ** len(rates))
    state = method.init(p.params)
    with TrajectoryWriter(path, Trajectory(name, options, 1e-5, 3)) as log:
        for n in range(18):
            state, info = method.step_(p.params, rising, state, seed=derive_seed(3, n), lr=1e-5)
            rates.append(info.lr)
            log.append(info)
    assert rates[:4] == pytest.approx([1e-4, 1e-5, 1e-5, 1e-4])
    assert rates[9] == pytest.approx(1e-4), "five windows of two steps must be over"
    assert rates[10] == pytest.approx(1e-5 / 4) and rates[12] == pytest.approx(1e-4 / 16)
    replayed = Trajectory.read(path).replay_(problem().params)
    live, again = (s[0] if isinstance(s, tuple) else s for s in (state, replayed))
    assert again.annealed == live.annealed and live.annealed.factor == 0.01


def test_svrg_declares_its_copies(problem):
    params = problem().params
    cost = {s: methods.build("mezo_svrg", storage=s).cost(params) for s in STORAGES}
    assert cost["replay"].state_bytes == 0
    assert cost["dense"].state_bytes == 2 * params.bytes
    released = methods.build("mezo_svrg_released").cost(params)
    assert released.state_bytes == params.bytes and released.scratch_bytes >= params.bytes


@pytest.mark.parametrize("restore", RESTORES)
@pytest.mark.parametrize("period", [1, 2, 4])
@pytest.mark.parametrize(
    "name,own", [(SVRG[0], {"storage": s}) for s in STORAGES] + [(SVRG[1], {})]
)
def test_dearest_step_of_svrg_draws_what_it_declares(name, own, period, restore, problem, drawn):
    p = problem()
    method = methods.build(name, period=period, restore=restore, **own)
    state, most = method.init(p.params), 0
    for n in range(period + 1):
        drawn.clear()
        state, _ = step(method, p, state, n, 1e-3)
        most = max(most, sum(drawn))
    assert most == method.cost(p.params).noise_passes * p.params.elements


def test_replay_refuses_moves_that_it_is_not_told():
    with pytest.raises(ValueError, match="weight_decay = 0, or storage = 'dense'"):
        methods.build("mezo_svrg", weight_decay=0.1)
    methods.build("mezo_svrg", weight_decay=0.1, storage="dense")


@pytest.mark.parametrize(
    "options,told",
    [
        ({"period": 0}, "period must be 1"),
        ({"anchor_lr_ratio": -1.0}, "anchor_lr_ratio above 0"),
        ({"anneal": 0.5}, "anneal must be above 1"),
        ({"anneal": 3.0, "anneal_floor": 0.0}, "anneal_floor in"),
    ],
)
@pytest.mark.parametrize("name", SVRG)
def test_svrg_refuses_what_cannot_be(name, options, told):
    with pytest.raises(ValueError, match=told):
        methods.build(name, **options)


def test_standing_elsewhere_is_undone_to_the_bit_when_the_look_fails():
    tensors = [torch.randn(7, 5), torch.randn(6, 4).t()]
    params = Params((str(n), t) for n, t in enumerate(tensors))
    values = [torch.randn(t.shape) for t in tensors]
    before, there = [t.clone() for t in tensors], [v.clone() for v in values]
    with pytest.raises(RuntimeError), standing_at(params, values):
        assert all(torch.equal(t, v) for t, v in zip(tensors, there, strict=True))
        raise RuntimeError
    assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))
    assert all(torch.equal(v, t) for v, t in zip(values, there, strict=True))


# ---------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_three_storages_of_the_mask_give_the_same_bits(dtype, problem):
    ends = []
    for storage in ("in_forward", "packed", "dense"):
        p = problem(dtype)
        run(p, "sparse_mezo", 25, 0.05, storage=storage, restore="exact", trained_fraction=0.6)
        ends.append(p.flat())
    assert torch.equal(ends[0], ends[1]) and torch.equal(ends[1], ends[2])
    assert not torch.equal(ends[0], problem(dtype).flat())


MASKED = [
    ("sparse_mezo", {"trained_fraction": 0.6}),
    ("sparse_mezo", {"trained_fraction": 0.6, "storage": "packed"}),
    ("sparse_mezo", {"trained_fraction": 0.6, "storage": "packed", "restore": "exact"}),
    ("sparse_mezo", {"trained_fraction": 0.6, "storage": "dense", "rounding": "stochastic"}),
    ("random_mask_mezo", {}),
    ("random_mask_mezo", {"resample": False, "restore": "exact", "rounding": "stochastic"}),
    ("static_sparse_mezo", {"trained_fraction": 0.3}),
    ("static_sparse_mezo", {"restore": "exact", "rounding": "stochastic"}),
]


def frozen_bits_that_change(method, p, steps=6, lr=0.05):
    """Return how many frozen entries a step changed in any bit, over a few steps, and moved."""
    with torch.no_grad():  # plain addition of 0.0 turns it into +0.0
        p.params[0].tensor.view(-1)[::2] = -0.0
    state, changed, moved = method.init(p.params), 0, 0
    for n in range(steps):
        seed = derive_seed(3, n)
        along = method.estimator.support.restricted(Gaussian(), p.params, seed, state[0])
        ones = Params((q.name, q.tensor.detach().clone()) for q in p.params)
        along.add_(ones, [Term(seed, 1.0)])
        pairs = list(zip(ones, p.params, strict=True))
        frozen = torch.cat([(o.tensor == q.tensor).reshape(-1) for o, q in pairs])
        before = bits(p.flat())
        state, _ = method.step_(p.params, p.objective, state, seed=seed, lr=lr)
        differ = bits(p.flat()) != before
        changed += int((differ & frozen).sum())
        moved += int((differ & ~frozen).sum())
    return changed, moved


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name,options", MASKED)
def test_frozen_entries_keep_every_bit(name, options, dtype, problem):
    changed, moved = frozen_bits_that_change(methods.build(name, **options), problem(dtype))
    assert changed == 0 and moved > 0


def test_mask_of_perturbed_weights_would_be_noticed(problem):
    class Unchecked(SmallEntries):
        reads_weights = False  # so that nobody refuses to overwrite the weights it reads

    support = Unchecked(0.5, "in_forward", 1)
    wrong = ZerothOrder(Restricted(0.1, Gaussian(), support), Sgd())
    right = methods.build("sparse_mezo", eps=0.1, trained_fraction=0.5, storage="packed")
    left = []
    for method in (wrong, right):
        p = problem(torch.float64)
        before = p.flat()
        plan = method.estimator.plan(p.params, 1, method.init(p.params)[0])
        look(method.settings.perturber, p.params, p.objective, plan, no_span)
        left.append(float((p.flat() - before).abs().max()))
    assert left[0] > 0.01 and left[1] < 1e-15, "what has grown past the threshold stays there"


@pytest.mark.parametrize("name,options", MASKED)
def test_masks_do_not_depend_on_how_the_weights_are_cut(name, options, problem, monkeypatch):
    whole, cut = problem(), problem()
    run(whole, name, 4, 0.05, **options)
    monkeypatch.setattr(noise, "PIECE", 3)  # pieces that begin in the middle of a byte
    run(cut, name, 4, 0.05, **options)
    assert torch.equal(whole.flat(), cut.flat())


@pytest.mark.parametrize("kind", [PackedMask, DenseMask])
@pytest.mark.parametrize("piece", [1 << 18, 5])
def test_stored_masks_are_the_computed_one(kind, piece, monkeypatch):
    monkeypatch.setattr(noise, "PIECE", piece)
    tensors = [torch.randn(13), torch.randn(()), torch.randn(6, 7).t(), torch.randn(3, 5, 2)]
    params = Params((str(n), t) for n, t in enumerate(tensors))
    rule = SmallWeights({p.key: 0.6 for p in params})
    held = kind.empty(params)
    for _ in range(2):  # a second time over the old mask
        tensors[0].neg_().add_(0.5)
        held.write_(params, rule)
        for part in noise.pieces(params):
            expected = part.part.abs() > 0.6
            assert torch.equal(held.frozen(part), expected)


def test_packed_mask_is_a_bit_a_weight(problem):
    params = problem().params
    packed = methods.build("sparse_mezo", storage="packed").cost(params)
    assert packed.state_bytes == sum(math.ceil(p.tensor.numel() / 8) for p in params)
    assert methods.build("sparse_mezo").cost(params).state_bytes == 0
    assert methods.build("sparse_mezo", storage="dense").cost(params).state_bytes == params.bytes


def test_stored_mask_is_held_between_refreshes(problem):
    p = problem()
    method = methods.build("sparse_mezo", storage="packed", refresh=3, trained_fraction=0.5)
    state, trained = method.init(p.params), []
    for n in range(7):
        state, _ = step(method, p, state, n, 0.1)
        trained.append(method.trained_entries(p.params, state))
    assert trained[0] == trained[1] == trained[2] and trained[3] == trained[4] == trained[5]
    assert trained[2] > trained[3] > trained[6], "entries grow past the threshold, and freeze"


class Lora(torch.nn.Module):
    """B A, of which B begins at zero, and its distance from a matrix of ones."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.A = torch.nn.Parameter(torch.randn(2, 6, generator=generator))
        self.B = torch.nn.Parameter(torch.zeros(5, 2))

    def forward(self):
        return (self.B @ self.A - 1).square().sum()


@pytest.mark.parametrize("storage", ["in_forward", "packed", "dense"])
def test_a_tensor_that_begins_at_zero_is_trained_for_good(storage):
    module = Lora()
    params, objective = Params.of(module), Closure(module)
    method = methods.build("sparse_mezo", storage=storage, restore="exact")
    state, moved = method.init(params), 0
    assert method.trained_entries(params, state) == 10 + 3
    for n in range(50):
        before = module.B.detach().clone()
        state, _ = method.step_(params, objective, state, seed=n, lr=1e-3)
        moved += int((module.B != before).all())
    assert moved == 50
    assert method.trained_entries(params, state) >= 10


def test_masks_are_unpacked_without_a_word_from_the_host(host_is_away):
    param = Param("w", torch.randn(37), 1)
    packed = PackedMask.empty((param,))
    with host_is_away():
        packed.write_((param,), SmallWeights({1: 0.5}))
        (frozen,) = [packed.frozen(piece) for piece in noise.pieces((param,))]
    assert torch.equal(frozen, param.tensor.abs() > 0.5)


def test_sparse_masks_refuse_what_would_spoil_them():
    with pytest.raises(ValueError, match="restore = 'exact', or storage = 'packed'"):
        methods.build("sparse_mezo", restore="arithmetic")
    for name in ("sparse_mezo", "random_mask_mezo", "static_sparse_mezo"):
        with pytest.raises(ValueError, match="set weight_decay = 0"):
            methods.build(name, weight_decay=0.1)
        for fraction in (0.0, 1.5):
            with pytest.raises(ValueError, match=r"sparsity of 0\.75 is trained_fraction = 0.25"):
                methods.build(name, trained_fraction=fraction)
    with pytest.raises(ValueError, match="Did you mean 'packed'"):
        methods.build("sparse_mezo", storage="paked")
    with pytest.raises(ValueError, match="refresh must be 1; "):
        methods.build("sparse_mezo", refresh=2)


# ------------------------------------------------------------------------------ choosing entries


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_order_statistic_is_that_of_sorting(dtype):
    generator = torch.Generator().manual_seed(4)
    odd = torch.tensor([0.0, -0.0, 1e-7, -1e-7, 3.0, -3.0, 3.0, math.inf, 65504.0, -2.0])
    tensors = [
        torch.randn(1001, generator=generator),
        torch.randn(31, 64, generator=generator).t() * 1e-3,
        torch.randn((), generator=generator),
        torch.full((17,), -0.25),
        odd,
    ]
    for tensor in tensors:
        values = tensor.to(dtype)
        size = values.abs().reshape(-1)
        for k in {1, size.numel(), size.numel() // 2 + 1, size.numel() // 7 + 1}:
            expected = float(size.double().kthvalue(k).values)
            assert magnitude.kth_magnitude(Param("w", values, 1), k) == expected


@pytest.mark.parametrize("elements", [1, 10, 1000])
def test_at_least_one_entry_is_trained_however_small_the_fraction(elements):
    assert magnitude.count_of(1e-12, elements) == 1
    params = Params([("w", torch.arange(1.0, 1.0 + elements))])
    method = methods.build("static_sparse_mezo", trained_fraction=1e-12)
    assert method.trained_entries(params, method.init(params)) == 1


@pytest.mark.parametrize("storage", ["in_forward", "packed", "dense"])
@pytest.mark.parametrize("fraction", [0.2, 0.25, 0.999])
def test_fraction_that_is_trained_is_the_one_asked_for(fraction, storage):
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(300, 1001, generator=generator), torch.randn(1500, generator=generator)]
    params = Params((str(n), t) for n, t in enumerate(tensors))
    method = methods.build("sparse_mezo", trained_fraction=fraction, storage=storage)
    state = method.init(params)
    assert method.trained_entries(params, state) == sum(
        math.ceil(round(fraction * t.numel(), 6)) for t in tensors
    )
    assert method.trained_entries(params, state) / params.elements == pytest.approx(
        fraction, abs=1e-3
    )


@pytest.mark.parametrize("fraction", [0.1, 0.8])
def test_random_mask_trains_its_fraction(fraction):
    params = Params([("w", torch.zeros(1000, 1000))])
    method = methods.build("random_mask_mezo", trained_fraction=fraction, resample=False)
    fixed = method.estimator.advance(params, method.estimator.plan(params, 5, None), None, None)
    assert method.trained_entries(params, (fixed, None)) / 1e6 == pytest.approx(fraction, abs=2e-3)
    assert method.trained_entries(params, (None, None)) == pytest.approx(fraction * 1e6)


@pytest.mark.parametrize("resample", [False, True])
def test_random_mask_stays_or_is_drawn_anew(resample, problem):
    p = problem()
    method = methods.build("random_mask_mezo", resample=resample)
    start, state, moved = p.flat(), method.init(p.params), []
    for n in range(3):
        before = p.flat()
        state, _ = step(method, p, state, n, 0.05)
        moved.append(p.flat() != before)
    assert torch.equal(moved[0], moved[1]) == (not resample)
    assert torch.equal(moved[1], moved[2]) == (not resample)
    assert not torch.equal(p.flat(), start)


@pytest.mark.parametrize("criterion", ["largest", "smallest"])
@pytest.mark.parametrize("piece", [1 << 18, 9])
def test_chosen_entries_are_those_of_a_stable_sort(criterion, piece, monkeypatch):
    monkeypatch.setattr(noise, "PIECE", piece)
    generator = torch.Generator().manual_seed(8)
    many_ties = torch.randint(-4, 5, (101,), generator=generator).float()
    tensors = [torch.randn(40, 9, generator=generator), many_ties, torch.randn(5, 8).t()]
    params = Params((str(n), t) for n, t in enumerate(tensors))
    method = methods.build("static_sparse_mezo", trained_fraction=0.3, criterion=criterion)
    state = method.init(params)
    for param in params:
        size = param.tensor.reshape(-1).abs()
        order = torch.sort(size, descending=criterion == "largest", stable=True).indices
        expected = order[: math.ceil(0.3 * len(size))].sort().values
        places = state[0][param.key].places
        assert places.tolist() == expected.tolist() and places.dtype == torch.int32
    assert method.trained_entries(params, state) == sum(
        math.ceil(0.3 * t.numel()) for t in tensors
    )
    kept = sum(chosen.places.nbytes for chosen in state[0].values())
    assert method.cost(params).state_bytes == kept


def test_gathered_directions_are_drawn_for_the_chosen_alone(drawn):
    params = Params([("w", torch.randn(500, 400)), ("b", torch.randn(90))])
    method = methods.build("static_sparse_mezo", trained_fraction=0.01)
    state = method.init(params)
    closure = Closure(lambda: params[0].tensor.square().sum() + params[1].tensor.square().sum())
    drawn.clear()
    method.step_(params, closure, state, seed=1, lr=1e-4)
    assert sum(drawn) == 3 * (2000 + 1)


@pytest.mark.parametrize("piece", [1 << 18, 4])
def test_gathered_draws_what_it_adds(piece, monkeypatch):
    monkeypatch.setattr(noise, "PIECE", piece)
    tensors = [torch.zeros(50), torch.zeros(6, 7).t()]
    params = Params((str(n), t) for n, t in enumerate(tensors))
    places = [torch.tensor(p, dtype=torch.int32) for p in ([0, 3, 10, 11, 12, 49], [41])]
    chosen = {p.key: Chosen.of(p, c) for p, c in zip(params, places, strict=True)}
    along, terms = Gathered(Gaussian(), chosen), [Term(5, 1.0), Term(6, -2.0)]
    along.add_(params, terms)
    for part in noise.pieces(params):
        assert torch.equal(along.draw(Piece(part.param, part.part, part.first), terms), part.part)
    for param, of_tensor in zip(params, places, strict=True):
        stream = noise.reference.sample
        k = len(of_tensor)
        expected = stream("gaussian", 5, param.key, k) - 2 * stream("gaussian", 6, param.key, k)
        flat = param.tensor.reshape(-1)
        assert torch.allclose(flat[of_tensor.long()], expected, rtol=1e-6)
        assert int((flat != 0).sum()) == k


@pytest.mark.parametrize("shape", [(50, 40), (2000,)])
def test_chosen_entries_are_counted_once_and_no_piece_waits(shape, host_is_away, monkeypatch):
    monkeypatch.setattr(noise, "PIECE", 60)
    params = Params([("w", torch.randn(shape)), ("v", torch.randn(50, 40).t())])
    method = methods.build("static_sparse_mezo", trained_fraction=0.1)
    state, terms = method.init(params), [Term(5, 1.0), Term(6, -2.0)]
    along = method.estimator.support.restricted(Gaussian(), params, 1, state[0])
    with host_is_away():
        drawn = [along.draw(piece, terms) for piece in noise.pieces(params)]
        along.add_(params, terms)
    assert len(drawn) > 60 and sum(int((d != 0).sum()) for d in drawn) == 400


def test_the_last_place_of_a_tensor_may_be_the_last_of_its_index():
    """2^31 entries are the most that int32 can index, and 2^31 itself is no int32."""
    param = Param("w", torch.empty(1).expand(2**31), 1)
    chosen = Chosen.of(param, torch.tensor([0, 2**31 - 1], dtype=torch.int32))
    assert chosen.between(2**31 - noise.PIECE, 2**31) == (1, 2)


@pytest.mark.parametrize("name,options", MASKED)
def test_masked_directions_do_not_depend_on_their_company(name, options, problem):
    p, alone = problem(), problem()
    method = methods.build(name, **options)
    whole = method.estimator.plan(p.params, 4, method.init(p.params)[0]).distribution
    whole.add_(p.params, [Term(4, 0.1)])
    for param in alone.params:
        whole.add_((param,), [Term(4, 0.1)])
    assert torch.equal(p.flat(), alone.flat())


@pytest.mark.parametrize("name,options", [*MASKED, ("mezo_svrg", {"storage": "dense"})])
def test_fake_tensors_pass_through(name, options):
    """What a tracer of memory does: no value is asked for."""
    method = methods.build(name, **options)
    with FakeTensorMode(), torch.no_grad():
        params = Params([("w", torch.empty(300, 1000)), ("b", torch.empty(()))])
        state = method.init(params)
        plan = method.estimator.plan(params, 1, state[0])
        for one in plan.looks:
            with standing_at(params, one.at):
                one.distribution.add_(params, one.points[0])
        for part in noise.pieces(params):
            plan.distribution.draw(part, [Term(1, 1.0)])


@pytest.fixture
def host_is_away(monkeypatch):
    """Return a context in which nothing may be copied to the device, nor read from it."""

    def refuse(*args, **kwargs):
        raise AssertionError("the host and the device meet")

    @contextmanager
    def away():
        real = torch.tensor
        with monkeypatch.context() as patch:
            for name in ("tolist", "item", "cpu", "__int__", "__float__", "__bool__"):
                patch.setattr(torch.Tensor, name, refuse)
            # A number on the host (a coefficient of a sum) goes along with a launch.
            patch.setattr(
                torch, "tensor", lambda x, **k: refuse() if "device" in k else real(x, **k)
            )
            yield

    return away


@pytest.fixture
def drawn(monkeypatch):
    """Count the entries that directions are drawn for: a list that grows."""
    counts: list[int] = []
    real = noise._pick

    def counting(flat, kernel):
        def add(flat, outs, law, key, terms, *place):
            if law != "uniform":
                counts.append(flat.numel() * len(terms))
            real(flat, kernel)(flat, outs, law, key, terms, *place)

        return add

    monkeypatch.setattr(noise, "_pick", counting)
    return counts
