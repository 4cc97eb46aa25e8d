"""How updates land: stochastic rounding is right in the mean, decay is decoupled."""

from __future__ import annotations

import pytest
import torch

from zo_core import Params, Term, directions, noise
from zo_core.writing import Writer, observed

LAW = directions.build("gaussian")
HALVES = [torch.bfloat16, torch.float16]


def pieces_of(values):
    return next(iter(noise.pieces(Params([("w", values)]))))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("value", [0.02, -0.02, 1e-6, -3e-7, 1.7, 0.99999])
def test_the_mean_of_stochastic_rounding_is_the_value(dtype, value):
    exact = torch.full((200_000,), value)
    piece = pieces_of(exact.to(dtype))
    rounded = noise.rounded(piece, exact, seed=3).float()
    near = torch.tensor(value).to(dtype)
    assert 1 <= len(rounded.unique()) <= 2
    assert (
        rounded.unique().sub(value).abs().max()
        <= 2 * torch.finfo(dtype).eps * abs(value)
        + torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    )
    error = rounded.double().mean() - value
    assert abs(error) <= 4.5 * rounded.double().std() / 200_000**0.5 + 1e-12
    assert near in rounded


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_values_of_the_dtype_stay(dtype):
    every = torch.arange(2**16).to(torch.uint16).view(torch.int16).view(dtype)
    every = every[every.isfinite()]
    rounded = noise.rounded(pieces_of(every), every.float(), seed=1)
    assert torch.equal(rounded.view(torch.int16), every.view(torch.int16))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_what_is_too_large_stays_at_the_largest(dtype):
    largest = torch.finfo(dtype).max
    beyond = torch.tensor([largest * 1.001, -largest * 1.001] * 500)
    rounded = noise.rounded(pieces_of(beyond.to(dtype)), beyond, seed=1)
    assert rounded.abs().max() <= largest and rounded.isfinite().all()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_small_updates_survive_on_average_where_nearest_loses_them(dtype):
    def after(rounding):
        w = torch.full((4096,), 1.0, dtype=dtype)
        for step in range(400):
            Writer(step, rounding).piece_(pieces_of(w), torch.full((4096,), 1e-5))
        return float(w.double().mean()) - 1.0

    assert after("nearest") == 0.0
    assert after("stochastic") == pytest.approx(4e-3, rel=0.1)


def test_one_step_rounds_the_same_way_again_and_another_does_not():
    def write(seed):
        w = torch.full((4096,), 0.3, dtype=torch.bfloat16)
        Writer(seed, "stochastic").terms_(Params([("w", w)]), LAW, [Term(5, 1e-4)])
        return w

    assert torch.equal(write(1), write(1))
    assert not torch.equal(write(1), write(2))


@pytest.mark.parametrize("group,decayed", [("matrices", [True, False]), ("all", [True, True])])
def test_decay_is_of_the_old_weights_and_of_its_group(group, decayed):
    matrix, bias = torch.full((3, 4), 2.0), torch.full((4,), 2.0)
    params = Params([("w", matrix), ("b", bias)])
    plain = [p.tensor.clone() for p in params]
    LAW.add_(Params([("w", plain[0]), ("b", plain[1])]), [Term(1, 0.1)])
    Writer(0, decay=0.25, group=group).terms_(params, LAW, [Term(1, 0.1)])
    for now, undecayed, yes in zip((matrix, bias), plain, decayed, strict=True):
        assert torch.allclose(now, undecayed - 0.5 * yes, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, *HALVES], ids=str)
def test_an_observer_sees_every_write_and_changes_no_bit(dtype):
    def write(watch):
        w = torch.linspace(-1, 1, 700_000).to(dtype)
        params = Params([("w", w.view(700, 1000))])
        seen = []
        if watch:
            with observed(lambda p, *told: seen.append([t.clone() for t in (*told, p.part)])):
                Writer().terms_(params, LAW, [Term(1, 1e-3), Term(2, -1e-3)])
        else:
            Writer().terms_(params, LAW, [Term(1, 1e-3), Term(2, -1e-3)])
        return w, seen

    (alone, _), (watched, seen) = write(False), write(True)
    assert torch.equal(alone, watched)
    old, asked, new = (torch.cat(column) for column in zip(*seen, strict=True))
    assert torch.equal(new, alone)
    assert torch.equal(old.to(dtype), torch.linspace(-1, 1, 700_000).to(dtype))
    assert torch.equal((old + asked).to(dtype), new)
