"""Perturbed copies of weights: the bits of in place, in the room declared; theta untouched."""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from zo_core import Closure, Params, directions, methods, noise
from zo_core.base import Look, Param, Piece, Term
from zo_core.directions.gaussian import Gaussian
from zo_core.estimators.two_point import both_sides
from zo_core.noise import cpu, low_rank
from zo_core.noise.low_rank import Product
from zo_core.perturbers import by_rows, elsewhere
from zo_core.perturbers.batched import Batched
from zo_core.perturbers.by_rows import Looks
from zo_core.perturbers.elsewhere import Elsewhere, room_bytes
from zo_core.perturbers.in_forward import InForward
from zo_core.structured import low_rank as low_rank_law
from zo_core.structured.block import OnBlocks
from zo_core.structured.elementwise import Elementwise
from zo_core.structured.gathered import Chosen, Gathered
from zo_core.structured.kept import Kept
from zo_core.structured.low_rank import LowRank
from zo_core.structured.masked import Masked
from zo_core.structured.masks import PackedMask, RandomEntries, SmallWeights
from zo_core.structured.scaled import Scaled

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
GAUSSIAN, SIGNS = directions.build("gaussian"), directions.build("rademacher")
TERMS = (Term(3, 0.25), Term(8, -0.5))
SHAPE = (600, 501)  # more than a piece


def draws(shape, dtype=torch.float32, seed=4) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def packed(param: Param) -> PackedMask:
    params = Params([(param.name, param.tensor)])
    mask = PackedMask.empty(params)
    mask.write_(params, RandomEntries(0.3, seed=5))
    return mask


def whole(param: Param) -> Piece:
    return Piece(param, param.tensor.detach().view(-1), 0)


DISTRIBUTIONS = {
    "gaussian": lambda p: GAUSSIAN,
    "rademacher": lambda p: SIGNS,
    "small": lambda p: Masked(GAUSSIAN, SmallWeights({p.key: 0.75})),
    "small, signs": lambda p: Masked(SIGNS, SmallWeights({p.key: 0.75})),
    "small, low rank": lambda p: Masked(LowRank(2, 9), SmallWeights({p.key: 0.75})),
    "random": lambda p: Masked(GAUSSIAN, RandomEntries(0.3, seed=5)),
    "packed": lambda p: Masked(GAUSSIAN, packed(p)),
    "scaled": lambda p: Scaled(GAUSSIAN, {p.key: 1.75}),
    "covered": lambda p: OnBlocks(GAUSSIAN, {3: frozenset([p.key]), 8: frozenset()}),
    "not covered": lambda p: OnBlocks(GAUSSIAN, {3: frozenset(), 8: frozenset()}),
    "elementwise": lambda p: Elementwise(
        GAUSSIAN, {p.key: draws((p.tensor.numel(),)).abs().add_(0.5)}
    ),
    "kept": lambda p: Kept(GAUSSIAN, 3, {p.key: draws(p.tensor.shape, p.tensor.dtype, seed=6)}),
    "gathered": lambda p: Gathered(
        GAUSSIAN, {p.key: Chosen.of(p, torch.arange(0, p.tensor.numel(), 7))}
    ),
    "low rank": lambda p: LowRank(3, v_seed=9),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_copy_has_the_bits_of_adding_in_place(name, dtype):
    (param,) = Params([("w", draws(SHAPE, dtype))])
    clean = param.tensor.clone()
    along = DISTRIBUTIONS[name](param)
    outs = [torch.full_like(clean, 9.0) for _ in range(2)]
    along.write(whole(param), [out.view(-1) for out in outs], TERMS)
    alone = torch.full_like(clean, 9.0)
    along.write(whole(param), [alone.view(-1)], TERMS)
    assert torch.equal(param.tensor, clean) and torch.equal(alone, outs[0])
    for out, sign in zip(outs, (1, -1), strict=True):
        param.tensor.copy_(clean)
        along.add_([param], [Term(t.seed, sign * t.coefficient) for t in TERMS])
        assert torch.equal(out, param.tensor)
    assert torch.equal(outs[0], outs[1]) == (name == "not covered")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_rows_have_the_bits_of_the_whole(name, dtype):
    (param,) = Params([("w", draws(SHAPE, dtype))])
    along = DISTRIBUTIONS[name](param)
    sides = [torch.empty_like(param.tensor) for _ in range(2)]
    along.write(whole(param), [side.view(-1) for side in sides], TERMS)
    columns = SHAPE[1]
    tile = Piece(param, param.tensor[77:300].view(-1), 77 * columns)
    outs = [torch.empty_like(tile.part) for _ in range(2)]
    along.write(tile, outs, TERMS)
    for out, side in zip(outs, sides, strict=True):
        assert torch.equal(out, side[77:300].view(-1))
    rows = torch.tensor([5, 599, 0, 5, *range(130, 300)])
    outs = [param.tensor.new_empty(len(rows), columns) for _ in range(2)]
    along.write_rows(param, rows, outs, TERMS)
    for out, side in zip(outs, sides, strict=True):
        assert torch.equal(out, side[rows])


class Returned(nn.Module):
    """A soft prompt: its output is a view of its weights."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1, 4), value))

    def forward(self, n: int) -> Tensor:
        return self.weight.expand(n, 4)


class Net(nn.Module):
    """Holds tensors around children, ties, keeps a list of its weights, and calls from afar."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.first, self.second = Returned(0.5), Returned(-0.25)
        self.walk = nn.GRU(4, 4, batch_first=True)
        self.gain = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + (self.first(len(ids)) * self.second(len(ids)))[:, None]
        return self.head(self.walk(x)[0] * self.gain)


@pytest.fixture
def net():
    torch.manual_seed(1)
    return Net()


def objective(net) -> Closure:
    ids = torch.arange(6).view(2, 3)
    return Closure(
        lambda: net(ids).float().square().mean(),
        tiled=lambda n: net(ids.repeat(n, 1)).float().square().view(n, -1).mean(1),
    )


def in_place(net, point, along=GAUSSIAN) -> float:
    params = Params.of(net)
    clean = [t.detach().clone() for t in params.tensors]
    along.add_(params, point)
    with torch.no_grad():
        seen = float(objective(net)())
        for tensor, was in zip(params.tensors, clean, strict=True):
            tensor.copy_(was)
    return seen


@pytest.mark.parametrize("perturber", [InForward(), Batched()], ids=repr)
@pytest.mark.parametrize("together", [0, 1 << 24])
def test_modules_run_with_the_perturbed_weights(perturber, together, net, monkeypatch):
    monkeypatch.setattr(elsewhere, "_TOGETHER", together)
    points = (TERMS, *both_sides(1, 0.3))
    wanted = [in_place(net, point) for point in points]
    if perturber == Batched():
        net.walk, net.first, net.second = nn.Identity(), None, None  # they can't be cut
        net.forward = lambda ids: net.head(net.embed(ids) * 1.5)
        net.gain.requires_grad_(False)
        wanted = [in_place(net, point) for point in points]
    seen = perturber.losses(Params.of(net), objective(net), Look(GAUSSIAN, points))
    assert seen == pytest.approx(wanted, rel=1e-6)
    assert len({round(x, 4) for x in seen}) == len(points)


def test_biases_and_norms_are_perturbed_wherever_they_are_used(net):
    net.forward = lambda ids: net.head(net.embed(ids)) + net.walk(torch.ones(1, 1, 4))[0].sum()
    for unused in (net.first.weight, net.second.weight):
        unused.requires_grad_(False)
    loss = Closure(lambda: (net(torch.arange(3)) * net.gain[0] + net.walk.bias_ih_l0[1]).sum())
    params = Params.of(net)
    seen = InForward().losses(params, loss, Look(GAUSSIAN, both_sides(1, 0.3)))
    for point, value in zip(both_sides(1, 0.3), seen, strict=True):
        clean = [t.detach().clone() for t in params.tensors]
        GAUSSIAN.add_(params, point)
        assert value == pytest.approx(float(loss().detach()), rel=1e-6)
        for tensor, was in zip(params.tensors, clean, strict=True):
            tensor.data.copy_(was)


def test_theta_is_not_written_while_it_is_perturbed(net):
    memory = net.walk.weight_ih_l0.detach()  # the weights themselves, not the parameter
    clean, seen = memory.clone(), []

    def watch(*_):
        seen.append((torch.equal(memory, clean), torch.equal(net.walk.weight_ih_l0, clean)))

    net.walk.register_forward_hook(watch)  # before those that put back
    InForward().losses(Params.of(net), objective(net), Look(GAUSSIAN, both_sides(1, 0.3)))
    assert seen == [(True, False)] * 2
    assert net.walk.weight_ih_l0.data_ptr() == memory.data_ptr()


class Told(type(GAUSSIAN)):
    """Tells what has been written, each time."""

    def prepared(self, writes):
        names, write = {piece.param.name for piece, _ in writes}, super().prepared(writes)

        def told(terms):
            write(terms)
            self.wrote(names)

        return told


class Interrupts(Told):
    def wrote(self, names):
        if "walk.weight_hh_l0" in names:
            raise KeyboardInterrupt


class InterruptsAhead(Told):
    def wrote(self, names):
        raise KeyboardInterrupt


@pytest.mark.parametrize("interrupted", ["ahead", "writing", "running"])
def test_an_interrupt_leaves_every_tensor_where_it_was(net, interrupted):
    params = Params.of(net)
    clean = [(t.data_ptr(), t.detach().clone()) for t in params.tensors]

    def stop(*_):
        raise KeyboardInterrupt

    if interrupted == "running":
        net.walk.forward = stop
    along = {"writing": Interrupts(), "ahead": InterruptsAhead()}.get(interrupted, GAUSSIAN)
    with pytest.raises(KeyboardInterrupt):
        InForward().losses(params, objective(net), Look(along, both_sides(1, 0.3)))
    for tensor, (place, values) in zip(params.tensors, clean, strict=True):
        assert tensor.data_ptr() == place and torch.equal(tensor, values)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_what_cannot_be_exchanged_is_perturbed_in_place(net):
    net.gain = nn.Parameter(torch.randn(8)[::2])
    net.head.weight = net.embed.weight = nn.Parameter(torch.randn(4, 7).t())
    wanted = [in_place(net, point) for point in both_sides(1, 0.3)]
    params = Params.of(net)
    clean = [t.detach().clone() for t in params.tensors]
    seen = InForward().losses(params, objective(net), Look(GAUSSIAN, both_sides(1, 0.3)))
    assert seen == pytest.approx(wanted, rel=1e-6)
    assert all(map(torch.equal, clean, params.tensors))


def test_a_module_that_is_called_from_afar_finds_room(net):
    class Caller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.others = nn.Parameter(torch.ones(6, 6)), [net.walk]

        def forward(self, x: Tensor) -> Tensor:  # runs inside, and is no child
            return self.others[0](x)[0] + self.weight.sum()

    both = nn.ModuleDict({"caller": Caller(), "net": net})
    for tensor in (net.embed.weight, net.gain, net.first.weight, net.second.weight):
        tensor.requires_grad_(False)
    params, x = Params.of(both), torch.ones(1, 2, 4)
    closure = Closure(lambda: both["caller"](x).sum())
    seen = InForward().losses(params, closure, Look(GAUSSIAN, both_sides(1, 0.3)))
    for loss, point in zip(seen, both_sides(1, 0.3), strict=True):
        away = [(p.tensor, p.tensor.detach().clone()) for p in params]
        GAUSSIAN.add_(params, point)
        assert loss == pytest.approx(float(closure().detach()), rel=1e-6)
        for tensor, was in away:
            tensor.data.copy_(was)


def test_fake_weights_take_the_room_of_real_ones(net, live_bytes):
    def peak(module) -> int:
        params = Params.of(module)
        room = Elsewhere(params, GAUSSIAN)
        with live_bytes() as counter:
            for own in room.owners.values():
                stand = room.stand(own, [(Term(1, 0.3),)])
                stand.at_(0)
                stand.back_()
        return max(b.nbytes for b in room._buffers.values()) if counter.peak else 0

    real = peak(net)
    with FakeTensorMode():
        fake = peak(Net())
    assert real == fake == room_bytes(Params.of(net))


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(300, 300) for _ in range(5)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Counts(Told):
    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "calls", [])

    def wrote(self, names):
        self.calls.append(names)


@pytest.mark.parametrize("perturber,ahead", [(InForward(), True), (Batched(), False)])
def test_small_modules_are_copied_in_one_call_and_each_stands_on_its_copy_while_it_runs(
    perturber, ahead
):
    module, x, along = Wide(), torch.ones(1, 300), Counts()
    params, points = Params.of(module), both_sides(1, 0.01)
    tiled = Closure(lambda: module(x).sum(), tiled=lambda n: module(x.expand(n, -1)).sum(1))
    wanted = []
    for point in points:
        clean = [t.detach().clone() for t in params.tensors]
        GAUSSIAN.add_(params, point)
        wanted.append(float(module(x).detach().sum()))
        for tensor, was in zip(params.tensors, clean, strict=True):
            tensor.data.copy_(was)
    places, seen = [t.data_ptr() for t in params.tensors], []

    def look(*_):
        seen.append([t.data_ptr() for t in params.tensors] == places)

    module.layers[2].register_forward_pre_hook(look)  # before those that exchange weights
    losses = perturber.losses(params, tiled, Look(along, points))
    assert losses == pytest.approx(wanted, rel=1e-5)
    names = {p.name for p in params}
    early = {name for name in names if name.endswith("bias")} if ahead else set()
    calls = [early, names - early] * 2 if ahead else [names]
    assert along.calls == calls
    assert seen == ([False, False] if ahead else [True])  # biases alone are away all along


def assert_runs_as_in_place(module: nn.Module) -> None:
    """Look at both sides of a module of rows of six, and at the same weights moved in place."""
    params, points, x = Params.of(module), both_sides(1, 0.3), torch.randn(2, 6)
    loss = Closure(lambda: module(x).square().sum())
    seen = InForward().losses(params, loss, Look(GAUSSIAN, points))
    assert params in elsewhere._kept
    assert InForward().losses(params, loss, Look(GAUSSIAN, points)) == seen  # in the same room
    for value, point in zip(seen, points, strict=True):
        clean = [t.detach().clone() for t in params.tensors]
        GAUSSIAN.add_(params, point)
        assert value == pytest.approx(float(loss().detach()), rel=1e-6)
        for tensor, was in zip(params.tensors, clean, strict=True):
            tensor.data.copy_(was)


class Borrows(nn.Module):
    """Uses the weight of its part in its own way, after that part has run."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.other = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(nn.functional.linear(self.part(x), self.part.weight))


@pytest.mark.parametrize("calls", [1, 2])
def test_a_small_part_of_the_model_stands_on_its_copies_as_a_whole(calls):
    module = nn.Sequential(*[Borrows()] * calls)  # one after another, of one and the same weights
    assert_runs_as_in_place(module)


class Within(nn.Module):
    """A linear layer that calls itself once more."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor, again: bool = True) -> Tensor:
        y = self(x, again=False) if again else x
        return nn.functional.linear(y, self.weight)


@pytest.mark.parametrize("together", [0, 1 << 24])
def test_a_module_that_enters_itself_stands_on_its_copies_until_it_ends(together, monkeypatch):
    monkeypatch.setattr(elsewhere, "_TOGETHER", together)
    module = nn.Sequential(Within(), Within())
    assert_runs_as_in_place(module)


class Twice(nn.Module):
    """Calls its part, and another that calls the same one while its own weight is in use."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Caller(nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.inner.part(x))


class Caller(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.weight, self.part = nn.Parameter(torch.randn(6, 6)), part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) @ self.weight


def test_copies_are_made_beside_those_that_are_in_use_then(monkeypatch):
    monkeypatch.setattr(elsewhere, "_TOGETHER", 0)
    assert_runs_as_in_place(Twice())


def test_copies_for_which_there_is_no_room_are_not_kept():
    module = Wide()
    params = Params.of(module)
    room = Elsewhere(params, GAUSSIAN)
    kept = []
    for _ in range(2):
        stands = []
        for _ in range(3):  # the room is for two
            stands.append(room.stand(tuple(params), [(Term(1, 0.3),)]))
            room._away.clear()  # as if others ran inside, that the room was not made for
        kept.append(len(room._places))
        for stand in reversed(stands):
            stand.back_()
    assert kept == [2, 2]


def test_a_module_of_a_group_that_does_not_run_is_refused():
    module = Wide()
    loss = Closure(lambda: module.layers[0](module.layers[1](torch.ones(300))).sum())
    module.forward = lambda x: module.layers(x) * 0 if x is None else module.layers[0](x)
    with pytest.raises(ValueError, match=r"'layers\.2\.weight' is not used"):
        InForward().losses(Params.of(module), loss, Look(GAUSSIAN, both_sides(1, 0.3)))


def test_groups_are_the_largest_parts_whose_copies_are_small(monkeypatch):
    module = nn.Sequential(Wide(), Wide(), nn.Linear(300, 300))
    size = 300 * 300 * 4 + 300 * 4
    within = {0: 0, 5 * size: 0, 6 * size: 2, 12 * size: 1}
    for limit, count in within.items():
        monkeypatch.setattr(elsewhere, "_TOGETHER", limit)
        assert len(elsewhere.groups(Params.of(module))) == count
        assert len(elsewhere.groups(Params.of(module), copies=2)) == (
            2 if limit == 12 * size else 0
        )
    monkeypatch.setattr(elsewhere, "_TOGETHER", 1 << 30)
    module.scale = nn.Parameter(torch.ones(3))
    assert not elsewhere.groups(Params.of(module))  # it holds a tensor itself, beside its parts


@pytest.mark.parametrize("restore,copies", [("exact", 1), ("batched", 2)])
@pytest.mark.parametrize("layers,together", [(1, 0), (1, 1 << 20), (5, 1 << 24)])
def test_the_room_is_taken_once_and_is_as_declared(
    restore, copies, layers, together, live_bytes, monkeypatch
):
    monkeypatch.setattr(elsewhere, "_TOGETHER", together)
    module, x = Wide(), torch.ones(1, 300)
    params = Params.of(module)
    tiled = Closure(lambda: module(x).sum(), tiled=lambda n: module(x.expand(n, -1)).sum(1))
    method = methods.build("mezo", restore=restore)
    ahead = restore == "exact"  # biases go before all modules
    written = copies * layers * (2 if layers == 5 else 1)  # groups by turns
    biases = 5 if ahead else written
    least = written * 300 * 300 * 4 + biases * 300 * 4
    with live_bytes() as counter:
        method.step_(params, tiled, method.init(params), seed=1, lr=0.0)
    room = room_bytes(params, copies, ahead)
    assert least <= room < least + 10 * 256 * max(copies, written // 5)
    assert least <= counter.peak <= room + (64 << 10)
    assert room <= method.cost(params).scratch_bytes


def test_groups_and_rows_are_written_to_two_places_by_turns(monkeypatch, by_tiles):
    places = {}

    class Where(type(GAUSSIAN)):
        def prepared(self, writes):
            write = super().prepared(writes)
            names, at = tuple(piece.param.name for piece, _ in writes), writes[0][1][0].data_ptr()

            def told(terms):
                places.setdefault(names, []).append(at)
                write(terms)

            return told

    by_tiles(False)
    module, x = nn.Sequential(*(Wide() for _ in range(3))), torch.ones(1, 300)
    monkeypatch.setattr(elsewhere, "_TOGETHER", 2_000_000)  # one of them
    params = Params.of(module)
    closure = Closure(lambda: module(x).sum())
    InForward().losses(params, closure, Look(Where(), both_sides(1, 0.3)))
    groups = [at for names, at in places.items() if len(names) == 5]
    assert len(groups) == 3
    assert [a[0] for a in groups] == [groups[0][0], groups[1][0], groups[0][0]]
    assert groups[1][0] - groups[0][0] == 5 * (300 * 300 * 4 + 192)  # aligned
    assert all(first != second for first, second in groups)  # at the two points
    places.clear()
    by_tiles(True)
    head = Large(tied=False)
    InForward().losses(Params.of(head), large_objective(head), Look(Where(), both_sides(1, 0.3)))
    rows = places["head.weight",]
    assert len(rows) == 6 and rows[::2] == [rows[0]] * 3 and rows[0] not in rows[1::2]


@pytest.fixture
def drawn(monkeypatch):
    """Count the elements that noise is drawn for."""
    real, total = noise._pick, [0]

    def counting(flat, kernel):
        def write(source, outs, law, key, terms, *more):
            total[0] += source.numel() * len(terms)
            real(flat, kernel)(source, outs, law, key, terms, *more)

        return write

    monkeypatch.setattr(noise, "_pick", counting)
    return total


@pytest.mark.parametrize(
    "points,passes",
    [
        (both_sides(1, 0.3), 1),
        (((), *both_sides(1, 0.3)), 1),
        ((TERMS, (), tuple(Term(t.seed, -t.coefficient) for t in TERMS)), 2),
        (((Term(1, 0.3),), (Term(2, -0.3),)), 2),
        (((Term(1, 0.3),), (Term(1, 0.3),)), 2),
        ((*both_sides(1, 0.3), *both_sides(1, 0.3)), 2),
    ],
)
def test_opposite_points_share_one_draw(points, passes, drawn):
    module, x = Wide(), torch.randn(2, 300)
    params = Params.of(module)
    closure = Closure(
        lambda: module(x).square().mean(),
        tiled=lambda n: module(x.repeat(n, 1)).square().view(n, -1).mean(1),
    )
    held = Batched().cost(params, points).scratch_bytes
    seen = Batched().losses(params, closure, Look(GAUSSIAN, points))
    modules = 5 if len(points) == 2 and passes == 1 else 1  # made at once
    copies = 2 * modules * (2 if modules == 5 else 1)  # by turns
    assert held < (copies + 1) * 300 * 301 * 4 + noise.piece_bytes(params, 1)
    assert drawn[0] == passes * params.elements
    assert Batched().cost(params, points).noise_passes == passes
    assert seen == pytest.approx(InForward().losses(params, closure, Look(GAUSSIAN, points)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_mask_by_thresholds_is_compared_in_the_kernel(dtype, monkeypatch):
    (param,) = Params([("w", draws(SHAPE, dtype))])
    clean, along = param.tensor.clone(), DISTRIBUTIONS["small"](param)
    wanted = clean.clone()
    noise.add_by_pieces_([Param("w", wanted, param.key)], along, TERMS)  # by torch, piece by piece
    monkeypatch.setattr(noise, "pieces", lambda params: 1 / 0)
    out = torch.empty_like(clean)
    along.write(whole(param), [out.view(-1)], TERMS)
    along.add_([param], TERMS)
    assert torch.equal(param.tensor, wanted) and torch.equal(out, wanted)
    small = clean.abs() <= 0.75
    assert torch.equal(wanted[~small], clean[~small]) and not small.all()
    assert (wanted[small] != clean[small]).float().mean() > 0.9


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rank", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(1, 40), (70, 33), (40, 5001)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_low_rank_kernel_has_the_bits_of_torch(dtype, shape, rank, threads):
    pytest.importorskip("numba")
    source, u, v = draws(shape, dtype), draws((shape[0], rank)), draws((shape[1], rank), seed=7)
    usual = torch.get_num_threads()
    ends = []
    try:
        torch.set_num_threads(threads)
        for kernel in (True, False):
            outs = [torch.empty_like(source) for _ in range(2)]
            alone, other = source.clone(), draws((5, shape[1]), dtype)
            products = [
                Product(source, outs, u, v),
                Product(alone, [alone], u, v),
                Product(other, [other], draws((5, rank)), v),
            ]
            low_rank.write(products, piece=16 * shape[1], kernel=kernel)
            ends.append([*outs, alone, other])
    finally:
        torch.set_num_threads(usual)
    assert all(map(torch.equal, *ends)) and torch.equal(ends[0][0], ends[0][2])
    exact = source.double() + u.double() @ v.double().t()
    torch.testing.assert_close(ends[0][0].double(), exact, rtol=8e-3, atol=1e-2)


def test_factors_of_few_matrices_are_drawn_at_once(monkeypatch, live_bytes):
    monkeypatch.setattr(low_rank_law, "_FACTORS", 5000)
    params = Params((f"w{i}", torch.zeros(300, 400)) for i in range(6))  # 2100 numbers each
    law = LowRank(3, v_seed=5)
    with live_bytes() as counter:
        law.add_(params, TERMS)
    factors, laid_out = 2 * 2100 * 4, 2 * 1200 * 4
    pieces = 3 * 300 * 400 * 4 if cpu.available() else 0
    assert factors <= counter.peak <= factors + max(laid_out, pieces) + 256


def test_a_low_rank_direction_is_that_of_its_pieces():
    params = Params([("w", draws((900, 400))), ("b", draws((50,))), ("small", draws((3, 3)))])
    law = LowRank(3, v_seed=5)
    wanted = [t.clone() for t in params.tensors]
    again = Params((p.name, t) for p, t in zip(params, wanted, strict=True))
    noise.add_by_pieces_(again, law, TERMS)
    law.add_(params, TERMS)
    assert all(map(torch.equal, wanted, params.tensors))
    strided = Params([("w", draws((400, 900)).t())])
    whole = Params([("w", strided.tensors[0].contiguous())])
    law.add_(strided, TERMS)
    law.add_(whole, TERMS)
    assert torch.equal(*strided.tensors, *whole.tensors)


# what is kept from one look to the next ----------------------------------------------------------


class Prepared(type(GAUSSIAN)):
    """Counts how often writing was prepared."""

    times: ClassVar[list[int]] = []

    def prepared(self, writes):
        self.times.append(len(writes))
        return super().prepared(writes)


@pytest.fixture
def prepared():
    Prepared.times.clear()
    return Prepared()


def look_at(module, along, perturber=None, seed=1, params=None) -> list[float]:
    closure = Closure(
        lambda: module(X).mean(),
        tiled=lambda n: module(X.repeat(n, 1)).view(n, len(X), -1).mean((1, 2)),
    )
    look = Look(along, both_sides(seed, 0.3))
    return (perturber or InForward()).losses(params or Params.of(module), closure, look)


X = torch.linspace(-1, 1, 12).view(3, 4)


def kept_net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 5)))


@pytest.mark.parametrize("perturber", [InForward(), Batched()], ids=repr)
def test_a_second_look_prepares_nothing_and_sees_the_same(perturber, prepared):
    module = kept_net()
    params = Params.of(module)
    look_at(module, prepared, perturber, params=params)
    before = len(Prepared.times)
    again = [look_at(module, prepared, perturber, seed, params) for seed in (1, 2)]
    assert before and len(Prepared.times) == before
    assert again == [look_at(module, GAUSSIAN, perturber, seed) for seed in (1, 2)]


def moved(module, params):
    for tensor in params.tensors:
        tensor.data = tensor.data.clone()


def cast(module, params):
    module.bfloat16()


def other_values(module, params):
    moved(module, params)
    params.tensors[0].data *= 3


def tied(module, params):
    module[1] = nn.Sequential(module[1][0], module[1][0], module[1][1])


def own_forward(module, params):
    linear = module[1][0]
    linear.forward = lambda x: nn.functional.linear(x, linear.weight) * 2


@pytest.mark.parametrize("change", [moved, cast, other_values, tied, own_forward])
@pytest.mark.parametrize("perturber", [InForward(), Batched()], ids=repr)
def test_a_room_is_not_used_again_where_it_would_not_fit(perturber, change, prepared):
    module = kept_net()
    params = Params.of(module)
    look_at(module, prepared, perturber, params=params)
    before = len(Prepared.times)
    change(module, params)
    x = X.to(params.tensors[0].dtype)
    closure = Closure(
        lambda: module(x).float().mean(),
        tiled=lambda n: module(x.repeat(n, 1)).float().view(n, len(x), -1).mean((1, 2)),
    )
    clean = [t.detach().clone() for t in params.tensors]
    look = Look(prepared, both_sides(2, 0.3))
    seen = perturber.losses(params, closure, look)
    assert len(Prepared.times) > before
    assert all(map(torch.equal, clean, params.tensors))
    elsewhere._kept.clear()
    assert seen == perturber.losses(params, closure, look)


def test_a_room_has_no_memory_between_looks_and_knows_nobody():
    module, law = kept_net(), Gaussian()
    params = Params.of(module)
    look_at(module, law, params=params)
    (_, room) = elsewhere._kept[params]
    assert all(b.untyped_storage().nbytes() == 0 for b in room._buffers.values())
    assert not room._seen and not room._away and not any(room._used.values())
    gone = weakref.ref(params)
    del params, room, _
    gc.collect()
    assert gone() is None and not any(key is None for key in elsewhere._kept)


@pytest.mark.parametrize("hold", [lambda t: t, lambda t: t.view(-1), Tensor.numpy])
@pytest.mark.parametrize("since", [0, 1, 2])
def test_a_copy_that_somebody_keeps_has_memory(hold, since):
    """As hooks do that look at weights: they see the copy, and what is written there later."""
    module, seen, looks = kept_net(), [], []
    params = Params.of(module)

    def keeps(linear, *_):
        if len(looks) >= since:
            seen.append(hold(linear.weight.detach()))

    module[1][0].register_forward_hook(keeps)
    for _ in range(3):
        looks.append(look_at(module, GAUSSIAN, params=params))
        assert (params in elsewhere._kept) == (len(looks) <= since)
    assert looks[0] == looks[1] == looks[2]
    assert all(np.isfinite(np.asarray(one)).all() for one in seen)
    assert len({np.asarray(one).ctypes.data for one in seen}) == 2 * (3 - since)  # by turns
    seen.clear()
    module[1][0]._forward_hooks.clear()
    assert look_at(module, GAUSSIAN, params=params) == looks[0] and params in elsewhere._kept


def test_a_look_that_was_cut_short_leaves_no_room(prepared):
    module = kept_net()
    params = Params.of(module)
    look_at(module, prepared, params=params)
    with pytest.raises(ZeroDivisionError):
        InForward().losses(params, Closure(lambda: 1 / 0), Look(prepared, both_sides(1, 0.3)))
    assert params not in elsewhere._kept
    assert look_at(module, prepared, params=params) == look_at(module, GAUSSIAN)


def test_directions_that_hold_tensors_are_not_kept():
    module = kept_net()
    params = Params.of(module)
    law = Kept(GAUSSIAN, 1, {p.key: torch.ones_like(p.tensor) for p in params})
    held = weakref.ref(next(iter(law.tensors.values())))
    look_at(module, law, params=params)
    del law
    gc.collect()
    assert held() is None


class Prompt(nn.Module):
    """Returns its weight, beside what comes in."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.weight, self.view = nn.Parameter(torch.randn(9, 9)), view

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.weight.t() if self.view else self.weight, x


class Beside(nn.Module):
    """Multiplies by what another module returned, after the next one has run."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.prompt, self.linear = Prompt(view), nn.Linear(6, 9)

    def forward(self, x: Tensor) -> Tensor:
        prompt, x = self.prompt(x)
        return self.linear(x) @ prompt


@pytest.mark.parametrize("view", [True, False])
@pytest.mark.parametrize("together", [0, 1 << 24])
def test_a_copy_that_a_module_returns_is_not_written_over(view, together, monkeypatch):
    monkeypatch.setattr(elsewhere, "_TOGETHER", together)
    assert_runs_as_in_place(Beside(view))


def test_calls_that_are_kept_are_counted(monkeypatch, prepared):
    monkeypatch.setattr(elsewhere, "_PLACES", 1)
    module = kept_net()
    params = Params.of(module)
    first = look_at(module, prepared, params=params)
    (_, room) = elsewhere._kept[params]
    before = len(Prepared.times)
    assert look_at(module, prepared, params=params) == first
    assert len(room._places) == 1 and len(Prepared.times) > before


# large layers, by rows ---------------------------------------------------------------------------

VOCABULARY = 700


class Large(nn.Module):
    """A large table, tied to a large head, and between them a large layer with a bias."""

    def __init__(self, *, tied: bool = True, head_bias: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 6)
        self.wide, self.norm = nn.Linear(6, 600), nn.LayerNorm(600)
        self.back = nn.Linear(600, 6)
        self.head = nn.Linear(6, VOCABULARY, bias=head_bias)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.back(self.norm(self.wide(self.embed(ids))).tanh()))


@pytest.fixture
def by_tiles(monkeypatch):
    """Take layers of more than 1000 numbers for large: tiles have 256 rows."""

    def switch(on: bool) -> None:
        monkeypatch.setattr(by_rows, "LARGE", 1000 if on else 1 << 22)
        elsewhere._kept.clear()  # rooms of layers that were large

    switch(True)
    return switch


def large_objective(module) -> Closure:
    ids = torch.randint(0, VOCABULARY, (2, 3), generator=torch.Generator().manual_seed(3))

    def losses(copies: int) -> Tensor:
        x = module(ids.repeat(copies, 1)).float()
        return x.log_softmax(-1)[..., 2].view(copies, -1).mean(1)

    return Closure(lambda: losses(1)[0], tiled=losses)


LOOKS = [
    both_sides(1, 0.3),
    ((), (Term(1, 0.3),), (Term(2, -0.1), Term(3, 0.2))),
    (*both_sides(1, 0.3), (), *both_sides(2, 0.1)),
]


@pytest.mark.parametrize("perturber", [InForward(), Batched()], ids=repr)
@pytest.mark.parametrize("points", LOOKS, ids=len)
@pytest.mark.parametrize("along", ["gaussian", "small", "packed", "low rank", "rademacher"])
@pytest.mark.parametrize("options", [{}, {"tied": False, "head_bias": True}], ids=str)
def test_large_layers_give_the_losses_of_whole_ones(perturber, points, along, options, by_tiles):
    torch.manual_seed(2)
    module = Large(**options)
    params = Params.of(module)
    law = {
        "small": lambda: Masked(GAUSSIAN, SmallWeights({p.key: 0.75 for p in params})),
        "packed": lambda: Masked(GAUSSIAN, packed_mask(params)),
    }.get(along, lambda: DISTRIBUTIONS[along](None))()
    before = [(t.data_ptr(), t.detach().clone()) for t in params.tensors]
    assert set(Elsewhere(params, law).layers) == {
        module.embed,
        module.wide,
        module.back,
        module.head,
    }
    seen = perturber.losses(params, large_objective(module), Look(law, points))
    by_tiles(False)
    assert not Elsewhere(params, law).layers
    wanted = perturber.losses(params, large_objective(module), Look(law, points))
    assert seen == pytest.approx(wanted, rel=1e-5)
    assert len({round(x, 4) for x in seen}) == len(points)
    for tensor, (place, values) in zip(params.tensors, before, strict=True):
        assert tensor.data_ptr() == place and torch.equal(tensor, values)
    assert not any("forward" in m.__dict__ for m in module.modules())


def packed_mask(params) -> PackedMask:
    mask = PackedMask.empty(params)
    mask.write_(params, RandomEntries(0.3, seed=5))
    return mask


class Odd(nn.Module):
    """Calls its large layer in ways that do not go by rows: a vector, and by name."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(6, 600)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x[0]).sum() * self.wide(input=x).mean() + self.wide(x[None]).std()


class Around(nn.Module):
    """Holds the weight of its child as its own."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(6, 600)
        self.weight = self.wide.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x).square().mean() + self.weight.std()


class Mixed(Large):
    """In mixed precision."""

    def forward(self, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().forward(ids)


@pytest.mark.parametrize("make", [Odd, Around, Mixed])
def test_other_calls_of_a_large_layer_see_the_same_weights(make, by_tiles):
    torch.manual_seed(2)
    module, x = make(), torch.randn(4, 6)
    given = torch.tensor([[1, 2], [3, 4]]) if make is Mixed else x
    objective, look = Closure(lambda: module(given).float().std()), Look(GAUSSIAN, LOOKS[0])
    if make is not Mixed:
        objective = Closure(lambda: module(given))
    params = Params.of(module)
    seen = InForward().losses(params, objective, look)
    by_tiles(False)
    wanted = InForward().losses(params, objective, look)
    assert seen == pytest.approx(wanted, rel=1e-2 if make is Mixed else 1e-5)
    assert seen[0] != pytest.approx(seen[1], rel=1e-3)


@pytest.mark.parametrize("wrong", [-1, VOCABULARY])
def test_a_token_that_is_not_in_the_table_is_refused(wrong, by_tiles):
    module = Large()
    closure = Closure(lambda: module(torch.tensor([[0, wrong]])).sum())
    with pytest.raises(IndexError, match=f"below {VOCABULARY}, got"):
        InForward().losses(Params.of(module), closure, Look(GAUSSIAN, LOOKS[0]))


def test_what_is_not_exactly_a_known_layer_goes_whole(by_tiles):
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    strided = nn.Linear(600, 6)
    strided.weight = nn.Parameter(torch.randn(600, 6).t())
    replaced = nn.Linear(6, 600)
    replaced.forward = lambda x: x
    bounded = nn.Embedding(VOCABULARY, 6, max_norm=1.0)
    module = nn.ModuleList([Own(6, 600), strided, replaced, bounded, nn.Linear(6, 600)])
    assert list(Elsewhere(Params.of(module), GAUSSIAN).layers) == [module[4]]


@contextmanager
def watched(counter):
    """Give the list of sizes, in bytes, of what is allocated meanwhile."""
    made, see = [], counter._see

    def watching(storage):
        before = counter.live
        see(storage)
        made.extend([counter.live - before] if counter.live > before else [])

    counter._see = watching
    with counter:
        yield made


@pytest.mark.parametrize("restore,copies", [("exact", 1), ("batched", 2)])
def test_no_copy_of_a_large_matrix_is_made(restore, copies, by_tiles, live_bytes):
    module, ids = Large(), torch.tensor([[1, 2]])
    module = module.requires_grad_(False)
    module.embed.weight.requires_grad_(True)
    module.wide = module.norm = nn.Identity()
    module.forward = lambda ids: module.head(module.embed(ids))
    params = Params.of(module)
    tiled = Closure(
        lambda: module(ids).sum(), tiled=lambda n: module(ids.repeat(n, 1)).view(n, -1).sum(1)
    )
    tile = copies * 256 * 6 * 4
    assert tile == room_bytes(params, copies) < params.bytes
    perturber = {"exact": InForward(), "batched": Batched()}[restore]
    with watched(live_bytes()) as made:
        perturber.losses(params, tiled, Look(GAUSSIAN, LOOKS[0]))
    outputs = 2 * copies * VOCABULARY * 4
    assert tile in made and max(made) <= max(tile, outputs)


def test_fake_large_layers_take_the_room_of_real_ones(by_tiles, live_bytes):
    def sizes(module, ids) -> list[int]:
        module.wide.bias.requires_grad_(False)  # the reference adds noise to a fake one
        params, x = Params.of(module), torch.ones(2, 6)
        room = Elsewhere(params, GAUSSIAN)
        with watched(live_bytes()) as made, torch.inference_mode():
            for at in (module.embed, module.wide, module.head):
                stand = room.lend(room.layers[at], Looks.at(LOOKS[0][0]))
                stand.at_(0)
                at(ids if at is module.embed else x)
                stand.back_()
        return [size for size in made if size > 1000]

    real = sizes(Large(), torch.tensor([1, 2]).view(1, 2))
    with FakeTensorMode():
        fake = sizes(Large(), torch.tensor([1, 2]).view(1, 2))
    assert set(real) == set(fake)


def test_opposite_points_share_the_draw_of_a_large_head(by_tiles, drawn):
    module, x = nn.Linear(6, 600), torch.randn(2, 6)
    params = Params.of(module)
    tiled = Closure(
        lambda: module(x).square().mean(),
        tiled=lambda n: module(x.repeat(n, 1)).square().view(n, -1).mean(1),
    )
    Batched().losses(params, tiled, Look(GAUSSIAN, LOOKS[0]))
    assert drawn[0] == params.elements


# what others compute of a large layer's weight ---------------------------------------------------


class Asked(Large):
    """Its head is asked for something else while the model runs, as the harness does."""

    def __init__(self, ask, **options) -> None:
        super().__init__(**options)
        self.ask = ask

    def forward(self, ids: Tensor) -> Tensor:
        if "forward" in self.head.__dict__:  # somebody else's already: left to them
            return self.ask_of_logits(super().forward(ids))
        self.head.__dict__["forward"] = lambda hidden: self.ask(self.head, hidden)
        try:
            return super().forward(ids)
        finally:
            del self.head.__dict__["forward"]


def sums_by_slices(head, hidden):
    """Sum exponentials over the vocabulary, 300 words at a time: more than a tile, and less."""
    total = 0.0
    for low in range(0, len(head.weight), 300):
        some = head.weight[low : low + 300].to(hidden.dtype)
        bias = None if head.bias is None else head.bias[low : low + 300]
        total = total + nn.functional.linear(hidden, some, bias).exp().sum(-1)
    return total.log()


LABELS = torch.tensor([7, 3, 650])


def label_words(head, hidden):
    bias = None if head.bias is None else head.bias[LABELS]
    return nn.functional.linear(hidden, head.weight[LABELS], bias).float().std(-1)


ASKED = {
    "slices": (sums_by_slices, lambda logits: logits.logsumexp(-1)),
    "rows": (label_words, lambda logits: logits[..., LABELS].std(-1)),
}


@pytest.mark.parametrize("perturber", [InForward(), Batched()], ids=repr)
@pytest.mark.parametrize("points", LOOKS, ids=len)
@pytest.mark.parametrize("what", ASKED)
@pytest.mark.parametrize("options", [{}, {"tied": False, "head_bias": True}], ids=str)
def test_what_is_asked_of_a_large_head_is_that_of_its_logits(
    perturber, points, what, options, by_tiles
):
    ask, of_logits = ASKED[what]
    torch.manual_seed(2)
    module, calls = Asked(lambda *given: calls.append(1) or ask(*given), **options), []
    module.ask_of_logits = of_logits
    ids = torch.randint(0, VOCABULARY, (2, 3), generator=torch.Generator().manual_seed(3))

    def losses(copies: int) -> Tensor:
        return module(ids.repeat(copies, 1)).view(copies, -1).mean(1)

    objective, look = Closure(lambda: losses(1)[0], tiled=losses), Look(GAUSSIAN, points)
    seen = perturber.losses(Params.of(module), objective, look)
    # One bias for all points would be that of theta, so such a head is not asked.
    assert bool(calls) == (perturber == InForward() or not options)
    by_tiles(False)
    module.head.__dict__["forward"] = module.head.forward
    wanted = InForward().losses(Params.of(module), objective, look)
    assert seen == pytest.approx(wanted, rel=1e-5)
    assert len({round(x, 4) for x in seen}) == len(points)


class Counted(type(GAUSSIAN)):
    """Lists what is written of the head."""

    def __init__(self) -> None:
        object.__setattr__(self, "seen", [])

    def write(self, piece, outs, terms):
        self.seen.extend(["all"] * (piece.param.name == "head.weight"))
        super().write(piece, outs, terms)

    def write_rows(self, param, rows, outs, terms):
        self.seen.extend([rows.tolist()] * (param.name == "head.weight"))
        super().write_rows(param, rows, outs, terms)


@pytest.mark.parametrize("perturber", [InForward(), Batched()], ids=repr)
def test_noise_is_drawn_for_the_rows_that_are_asked_for_alone(perturber, by_tiles):
    module, law = Asked(label_words, tied=False), Counted()
    ids = torch.tensor([[1, 2]])
    closure = Closure(
        lambda: module(ids).mean(), tiled=lambda n: module(ids.repeat(n, 1)).view(n, -1).mean(1)
    )
    perturber.losses(Params.of(module), closure, Look(law, LOOKS[0]))
    assert law.seen == [LABELS.tolist()] * (2 if perturber == InForward() else 1)


@pytest.fixture
def no_kernel_by_rows(monkeypatch):
    """Take the CPU for a device whose kernels write tiles alone."""
    monkeypatch.setattr(by_rows, "kernel_goes_by_rows", lambda device: False)
    elsewhere._kept.clear()


class Tiles(type(GAUSSIAN)):
    """Lists the rows of the head that are written, and refuses to write single ones."""

    def __init__(self) -> None:
        object.__setattr__(self, "seen", [])

    def prepared(self, writes):
        heads = [piece for piece, _ in writes if piece.param.name == "head.weight"]
        write = super().prepared(writes)

        def told(terms):
            self.seen += [(piece.first // 6, len(piece.part) // 6) for piece in heads]
            write(terms)

        return told

    def write_rows(self, param, rows, outs, terms):
        raise AssertionError("no kernel writes rows here")


def looked_up(head, x):
    return nn.functional.embedding(torch.tensor([[5, 0, 5]]), head.weight[300:]).std((1, 2))


ROWS_ASKED = {
    "label words": label_words,
    "repeated": lambda head, x: nn.functional.linear(x, head.weight[LABELS[[2, 0, 0]]]).std(-1),
    "cast and read": lambda head, x: (x.double() @ head.weight[LABELS].double().t()).float(),
    "rows of rows": lambda head, x: nn.functional.linear(x, head.weight[LABELS][LABELS[1:2] - 2]),
    "of a slice": lambda head, x: nn.functional.linear(x, head.weight[300:][LABELS[:2]]),
    "looked up": lambda head, x: x.mean((1, 2)) + looked_up(head, x),
}


@pytest.mark.parametrize("ask", ROWS_ASKED)
@pytest.mark.parametrize("perturber", [InForward(), Batched()], ids=repr)
def test_rows_of_a_large_head_are_those_of_its_tiles_to_the_bit(ask, perturber, by_tiles, request):
    torch.manual_seed(2)
    module, ids = Asked(ROWS_ASKED[ask], tied=False), torch.tensor([[1, 2]])
    if ask == "cast and read":  # as a tensor, which has a single point
        perturber = InForward()
    closure = Closure(
        lambda: module(ids).mean(), tiled=lambda n: module(ids.repeat(n, 1)).view(n, -1).mean(1)
    )
    params = Params.of(module)
    rows = perturber.losses(params, closure, Look(GAUSSIAN, LOOKS[0]))
    request.getfixturevalue("no_kernel_by_rows")
    tiles = perturber.losses(params, closure, Look(GAUSSIAN, LOOKS[0]))
    by_tiles(False)
    whole = InForward().losses(params, closure, Look(GAUSSIAN, LOOKS[0]))
    assert tiles == rows == pytest.approx(whole, rel=1e-5) and tiles[0] != tiles[1]


@pytest.mark.parametrize("perturber", [InForward(), Batched()], ids=repr)
def test_where_no_kernel_goes_by_rows_only_tiles_that_hold_some_are_written(
    perturber, by_tiles, no_kernel_by_rows
):
    module, law = Asked(label_words, tied=False), Tiles()
    ids = torch.tensor([[1, 2]])
    closure = Closure(
        lambda: module(ids).mean(), tiled=lambda n: module(ids.repeat(n, 1)).view(n, -1).mean(1)
    )
    perturber.losses(Params.of(module), closure, Look(law, LOOKS[0]))
    assert law.seen == [(0, 256), (512, 188)] * (2 if perturber == InForward() else 1)


OTHER_USES = {
    "function": lambda head, x: torch.matmul(x, head.weight.t()),
    "method": lambda head, x: x @ head.weight.float().t(),
    "index": lambda head, x: x @ head.weight[:, :6].t() + head.weight[5, 2],
    "mask": lambda head, x: x @ head.weight[torch.arange(VOCABULARY) < 9].t(),
    "product": lambda head, x: nn.functional.linear(x, torch.mul(head.weight, 2.0)),
}


@pytest.mark.parametrize("use", OTHER_USES)
def test_another_use_of_a_large_weight_sees_it_whole_or_is_refused_at_two_points(use, by_tiles):
    torch.manual_seed(2)
    module, ids = Asked(OTHER_USES[use]), torch.tensor([[1, 2]])
    closure = Closure(
        lambda: module(ids).std(), tiled=lambda n: module(ids.repeat(n, 1)).view(n, -1).std(1)
    )
    params, look = Params.of(module), Look(GAUSSIAN, LOOKS[0])
    seen = InForward().losses(params, closure, look)
    with pytest.raises(ValueError, match="Use restore='exact'"):
        Batched().losses(params, closure, look)
    assert "weight" not in module.head.__dict__
    by_tiles(False)
    assert seen == pytest.approx(InForward().losses(params, closure, look), rel=1e-5)
    assert seen[0] != pytest.approx(seen[1], rel=1e-4)


def test_a_word_that_is_asked_for_and_is_not_there_is_refused(by_tiles):
    module = Asked(lambda head, x: nn.functional.linear(x, head.weight[torch.tensor([1, 9999])]))
    closure = Closure(lambda: module(torch.tensor([[1, 2]])).std())
    with pytest.raises(IndexError, match=f"below {VOCABULARY}, got 1 to 9999"):
        InForward().losses(Params.of(module), closure, Look(GAUSSIAN, LOOKS[0]))
    assert "weight" not in module.head.__dict__


@pytest.mark.parametrize("perturber", [InForward(), Batched()], ids=repr)
def test_an_interrupt_inside_a_large_layer_leaves_it_its_weight(perturber, by_tiles):
    def stop(head, _):
        lent.append("weight" in head.__dict__)
        raise KeyboardInterrupt

    module, ids, lent = Asked(stop), torch.tensor([[1, 2]]), []
    params = Params.of(module)
    before = [(t.data_ptr(), t.detach().clone()) for t in params.tensors]
    closure = Closure(lambda: module(ids).std(), tiled=lambda n: module(ids.repeat(n, 1)).std(1))
    with pytest.raises(KeyboardInterrupt):
        perturber.losses(params, closure, Look(GAUSSIAN, LOOKS[0]))
    assert lent == [True] and not any("weight" in m.__dict__ for m in module.modules())
    for tensor, (place, values) in zip(params.tensors, before, strict=True):
        assert tensor.data_ptr() == place and torch.equal(tensor, values)
