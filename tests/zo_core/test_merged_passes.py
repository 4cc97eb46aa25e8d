"""The way back from a step's last look is part of its update: one pass, and one rounding."""

from __future__ import annotations

from dataclasses import dataclass, is_dataclass, replace

import pytest
import torch

from zo_core import Closure, NonFiniteLoss, Params, Term, derive_seed, directions, methods, noise
from zo_core.base import Look, Plan, no_span
from zo_core.estimators.two_point import TwoPoint
from zo_core.perturbers import in_place
from zo_core.perturbers.in_place import InPlace
from zo_core.updates.momentum import ReplayedMomentum
from zo_core.updates.sgd import Sgd
from zo_core.writing import observed
from zo_core.zeroth_order import PERTURBERS, ZerothOrder

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ZEROTH = [n for n in methods.names() if isinstance(methods.build(n), ZerothOrder)]

PASSES = {
    ("mezo",): (3, True),
    ("mezo", "clip", 2.0): (3, True),
    ("mezo", "weight_decay", 0.1): (4, False),
    ("mezo", "rounding", "stochastic"): (4, False),
    ("mezo_one_sided",): (2, True),
    ("mezo_residual",): (2, True),
    ("mezo_n_spsa", "samples", 4): (15, True),
    ("fzoo", "candidates", 4): (11, True),
    ("meazo",): (3, True),
    ("lozo", "rank", 1): (3, True),
    ("mezo_svrg",): (6, True),
    ("mezo_svrg", "period", 1): (3, True),
    ("mezo_svrg", "storage", "dense"): (7, False),
    ("mezo_momentum", "storage", "replay"): (12, True),
    ("mezo_momentum", "storage", "dense"): (4, False),
    ("mezo_adam",): (4, False),
    ("zo_sign",): (4, False),
    ("hizoo",): (5, False),
    ("mezo_variance_modified",): (4, False),
    ("random_mask_mezo",): (3, True),
    ("sparse_mezo", "storage", "packed"): (3, True),
}
"""What a step draws in passes over all entries, and whether it merges."""


KINDS = (tuple, list)


class PutsBack(InPlace):
    """Takes theta back in a pass of its own, always: what merged steps are compared with."""

    staying = None


def build(name, *option, **options):
    return methods.build(name, **dict([option] if option else []), **options)


def step(method, p, state, seed=1, lr=0.01, **told):
    return method.step_(p.params, p.objective, state, seed=seed, lr=lr, **told)


def trained(method, p, steps=5, lr=0.002):
    """Return the last state, and the info of every step."""
    state, infos = method.init(p.params), []
    for n in range(steps):
        state, info = step(method, p, state, derive_seed(3, n), lr)
        infos.append(info)
    return state, infos


def numbers(state):
    """Return every number in ``state``, as one flat tensor."""
    if isinstance(state, torch.Tensor):
        return state.double().reshape(-1)
    if is_dataclass(state):
        state = vars(state)
    if isinstance(state, dict):
        state = state.values()
    if isinstance(state, tuple | list | type({}.values())):
        return torch.cat([torch.zeros(0).double(), *map(numbers, state)])
    told = isinstance(state, int | float) and abs(state) < 2**53
    return torch.tensor([state if told else 0.0]).double()


@pytest.fixture
def drawn(monkeypatch):
    """Count the entries that directions are drawn for: a list that grows."""
    seen, real = [], noise._pick

    def counting(flat, kernel):
        def add(flat, *told):
            terms = sum(isinstance(t, Term) for some in told if type(some) in KINDS for t in some)
            seen.append(flat.numel() * terms * ("uniform" not in told))
            real(flat, kernel)(flat, *told)

        return add

    monkeypatch.setattr(noise, "_pick", counting)
    return seen


# what is merged ----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", PASSES, ids=str)
def test_a_step_draws_the_passes_that_it_declares(case, problem, drawn):
    p, method = problem(), build(*case)
    passes, merges = PASSES[case]
    state, most = method.init(p.params), 0
    for n in range(11):  # a momentum window fills
        drawn.clear()
        state, _ = step(method, p, state, n, 1e-4)
        most = max(most, sum(drawn))
    assert method.cost(p.params).noise_passes == passes
    if case[0] != "lozo":  # draws rows and columns
        assert most == passes * p.params.elements
    assert method.merges == merges


@pytest.mark.parametrize("restore", ["exact", "batched"])
def test_where_theta_never_leaves_there_is_no_way_back_to_merge(restore, problem):
    assert not build("mezo", restore=restore).merges
    p, method = problem(torch.float64), build("mezo", restore=restore, eps=0.1)
    before = p.flat()
    _, info = step(method, p, method.init(p.params), lr=0.0)
    assert torch.equal(p.flat(), before) and info.estimate.terms[0].coefficient


def test_blocks_save_the_way_back_of_their_own_size(problem, drawn):
    p = problem()
    sizes = {n: sum(t.numel() for t in b.parameters()) for n, b in p.named_children()}
    total, last = p.params.elements, sizes["head"]
    layerwise = build("mezo_layerwise")
    step(layerwise, p, layerwise.init(p.params))
    assert sum(drawn) == 4 * total - last
    assert layerwise.cost(p.params).noise_passes == 4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_last_move_and_the_update_are_rounded_once(dtype, problem):
    p, method, eps, lr = problem(dtype), build("mezo", eps=0.05), 0.05, 0.1
    there = []

    def loss():
        there[:] = [t.detach().clone() for t in p.params.tensors]
        return p.loss()

    _, info = method.step_(p.params, Closure(loss), method.init(p.params), seed=1, lr=lr)
    (term,) = info.estimate.terms
    wanted = Params(zip([q.name for q in p.params], there, strict=True))
    info.estimate.distribution.add_(wanted, [Term(1, eps - lr * term.coefficient)])
    for now, want in zip(p.params, wanted, strict=True):
        assert torch.equal(now.tensor, want.tensor)


@pytest.mark.parametrize("name", ZEROTH)
@pytest.mark.parametrize("eps", [1e-3, 0.3])
def test_a_merged_step_ends_where_one_of_separate_passes_does(name, eps, problem, monkeypatch):
    """A law for every method: what reads theta, or changes directions, says so."""
    for options in ({}, *({"storage": s} for s in storages(name))):
        merged, apart = problem(torch.float64), problem(torch.float64)
        method = with_eps(build(name, **options), eps)
        if not method.settings.perturber.staying:
            continue
        state, infos = trained(method, merged)
        with monkeypatch.context() as patch:
            patch.setitem(PERTURBERS, "arithmetic", PutsBack())
            assert not method.merges
            other, others = trained(method, apart)
        close = dict(rtol=1e-9, atol=1e-11 / eps)
        torch.testing.assert_close(merged.flat(), apart.flat(), **close)
        torch.testing.assert_close(numbers(state), numbers(other), **close)
        for one, two in zip(infos, others, strict=True):
            assert one.losses == pytest.approx(two.losses, rel=1e-9)


def storages(name):
    return getattr(__import__(f"zo_core.methods.{name}", fromlist=[name]), "STORAGES", ())


def with_eps(method, eps):
    restricted = {"in_forward": "exact"}.get(
        getattr(getattr(method.estimator, "support", None), "storage", None), "arithmetic"
    )
    estimator = replace(method.estimator, eps=eps)
    if hasattr(estimator, "alpha"):
        estimator = replace(estimator, alpha=1e-2)  # h moves at once, not by 1e-8
    settings = replace(method.settings, restore=restricted)
    return ZerothOrder(estimator, method.update, settings)


@dataclass(frozen=True)
class ReadsTheta(TwoPoint):
    says: bool = True

    @property
    def needs_theta_back(self):
        return self.says

    def advance(self, params, plan, estimate, state):
        return params[0].tensor.detach().clone()


@dataclass(frozen=True)
class LooksFromElsewhere(TwoPoint):
    def plan(self, params, seed, state):
        (look,) = super().plan(params, seed, state).looks
        there = [t.detach() + 1.0 for t in params.tensors]
        return Plan(self.distribution, (replace(look, at=there),), seed)


@dataclass(frozen=True)
class LooksAlongAnother(TwoPoint):
    def plan(self, params, seed, state):
        plan = super().plan(params, seed, state)
        other = directions.build("rademacher")
        return replace(plan, looks=(Look(other, plan.looks[0].points),))


GAUSSIAN = directions.build("gaussian")


@pytest.mark.parametrize(
    "estimator",
    [
        ReadsTheta(0.1, GAUSSIAN),
        LooksFromElsewhere(0.1, GAUSSIAN),
        LooksAlongAnother(0.1, GAUSSIAN),
    ],
    ids=lambda e: type(e).__name__,
)
def test_what_can_not_merge_does_not(estimator, problem):
    p = problem(torch.float64)
    before, method = p.flat(), replace(build("mezo"), estimator=estimator)
    (state, _), info = step(method, p, method.init(p.params), lr=0.1)
    wanted = Params((n, t.detach().clone().zero_()) for n, t in p.tensors.items())
    (term,) = info.estimate.terms
    info.estimate.distribution.add_(wanted, [Term(term.seed, -0.1 * term.coefficient)])
    moved = torch.cat([t.reshape(-1) for t in wanted.tensors])
    torch.testing.assert_close(p.flat(), before + moved, rtol=0, atol=1e-13)
    if isinstance(estimator, ReadsTheta):
        first = before[: state.numel()].view(state.shape)
        torch.testing.assert_close(state, first, rtol=0, atol=1e-13)
        unsaid = replace(method, estimator=replace(estimator, says=False))
        (state, _), _ = step(unsaid, p, method.init(p.params))
        assert (state - p.params[0].tensor).abs().max() > 0.05, "else the check sees nothing"


def test_momentum_over_changing_directions_is_taken_back_by_pieces(problem, monkeypatch):
    """LOZO's distribution changes with V, so the window is of several."""
    parts = dict(estimator=build("lozo", rank=1, interval=1).estimator)
    method = replace(build("mezo"), update=ReplayedMomentum(window=3), **parts)
    assert method.merges
    merged, apart = problem(torch.float64), problem(torch.float64)
    trained(method, merged)
    monkeypatch.setitem(PERTURBERS, "arithmetic", PutsBack())
    trained(method, apart)
    torch.testing.assert_close(merged.flat(), apart.flat(), rtol=0, atol=1e-9)


# errors ------------------------------------------------------------------------------------------


class Interrupts(TwoPoint):
    def advance(self, params, plan, estimate, state):
        raise KeyboardInterrupt


FAILURES = {
    "the first query": [ZeroDivisionError],
    "the second query": [1.0, ZeroDivisionError],
    "the user": [1.0, KeyboardInterrupt],
    "the first loss": [float("nan"), 1.0],
    "the second loss": [1.0, float("inf")],
    "the coefficient": [1e300, -1e300],
    "the state": [1.0, 2.0],
}


@pytest.mark.parametrize("what", FAILURES)
def test_theta_comes_back_whatever_fails(what, problem):
    p, answers = problem(torch.float64), iter(FAILURES[what])
    before, method = p.flat(), build("mezo", eps=0.1)
    assert method.merges
    if what == "the state":
        method = replace(method, estimator=Interrupts(0.1, GAUSSIAN))

    def loss():
        answer = next(answers)
        if isinstance(answer, type):
            raise answer
        return torch.tensor(answer, dtype=torch.float64)

    with pytest.raises((ZeroDivisionError, KeyboardInterrupt, NonFiniteLoss)):
        method.step_(p.params, Closure(loss), method.init(p.params), seed=1, lr=0.1)
    torch.testing.assert_close(p.flat(), before, rtol=0, atol=1e-14)


def test_losses_are_read_when_all_points_were_looked_at(problem, monkeypatch):
    p, events = problem(), []
    only = torch.zeros(())  # as of a captured graph: every call writes to one place

    def loss():
        events.append("asked")
        return only.copy_(p.loss())

    def reading(value):
        events.append("read")
        return float(value)

    monkeypatch.setattr(in_place, "finite", reading)
    look = Look(GAUSSIAN, ((Term(1, 0.1),), (Term(1, -0.1),)))
    seen = InPlace().losses(p.params, Closure(loss), look)
    assert events == ["asked", "asked", "read", "read"]
    monkeypatch.undo()
    q = problem()
    assert seen == pytest.approx(InPlace().losses(q.params, q.objective, look), rel=1e-6)
    assert seen[0] != seen[1]


# who is told what --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["mezo", "mezo_svrg", "mezo_block"])
def test_an_observer_is_told_the_update_alone_and_changes_no_bit(name, dtype, problem):
    alone, seen, told = problem(dtype), problem(dtype), []

    def watch(piece, old, asked):
        told.append((piece.param.name, old.clone(), asked.clone()))

    before = {n: t.detach().clone() for n, t in seen.tensors.items()}
    method = build(name, eps=0.05)
    step(method, alone, method.init(alone.params))
    with observed(watch):
        _, info = step(method, seen, method.init(seen.params))
    assert torch.equal(alone.flat(), seen.flat())
    assert {n for n, *_ in told} == set(before)
    wanted = {n: t.double().zero_() for n, t in ((n, t.clone()) for n, t in before.items())}
    terms = [Term(t.seed, -info.lr * t.coefficient) for t in info.estimate.terms]
    info.estimate.distribution.add_(Params(wanted.items()), terms)
    for n, old, asked in told:
        assert torch.equal(old.to(dtype).to(old.dtype), old), "a number of the dtype"
        drift = (old.double() - before[n].double().reshape(-1)).abs().max()
        assert drift <= 3 * torch.finfo(dtype).eps * 4
        torch.testing.assert_close(asked.double(), wanted[n].reshape(-1), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["mezo", "mezo_n_spsa", "mezo_svrg", "mezo_momentum"])
def test_retracing_makes_the_merged_moves_also_of_a_run_that_was_watched(name, dtype, problem):
    live, again = problem(dtype), problem(dtype)
    options = {"storage": "replay"} if name == "mezo_momentum" else {}
    method = build(name, eps=0.05, **options)
    assert method.merges
    state, back = method.init(live.params), method.init(again.params)
    for n in range(4):
        with observed(lambda *_: None):
            state, info = step(method, live, state, n, 1e-3)
        told = dict(seed=n, lr=info.lr, extra=info.estimate.extra, retrace=True)
        back = method.replay_(again.params, info.estimate.terms, back, **told)
        assert torch.equal(live.flat(), again.flat())


def test_a_replay_that_does_not_retrace_makes_the_update_alone(problem, drawn):
    p, method = problem(torch.float64), build("mezo", eps=0.1)
    before = p.flat()
    method.replay_(p.params, [Term(1, 2.0)], method.init(p.params), seed=1, lr=0.5)
    assert sum(drawn) == p.params.elements
    wanted = Params((n, t.detach().clone()) for n, t in problem(torch.float64).tensors.items())
    GAUSSIAN.add_(wanted, [Term(1, -1.0)])
    assert torch.equal(p.flat(), torch.cat([t.reshape(-1) for t in wanted.tensors]))
    assert not torch.equal(p.flat(), before)


def test_the_merged_pass_belongs_to_the_update(problem):
    class Spans:
        def __init__(self):
            self.seen = []

        def __call__(self, phase):
            self.seen.append(phase)
            return no_span(phase)

    p, spans, method = problem(), Spans(), build("mezo")
    step(method, p, method.init(p.params), span=spans)
    assert spans.seen == ["perturb", "forward", "perturb", "forward", "update"]
    p, spans, apart = problem(), Spans(), build("mezo", weight_decay=0.1)
    step(apart, p, apart.init(p.params), span=spans)
    assert spans.seen == ["perturb", "forward", "perturb", "forward", "perturb", "update"]


def test_rules_that_do_not_say_that_they_write_terms_get_theta_back(problem):
    class Shrinks(Sgd):
        in_terms = False

        def apply_(self, params, estimate, state, lr, write):
            for tensor in params.tensors:
                tensor.mul_(0.5)
            return state, None

    p = problem(torch.float64)
    before, method = p.flat(), replace(build("mezo", eps=0.1), update=Shrinks())
    step(method, p, method.init(p.params))
    torch.testing.assert_close(p.flat(), before / 2, rtol=0, atol=1e-14)
