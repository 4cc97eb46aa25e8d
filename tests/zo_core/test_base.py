"""The words themselves: what Params, seeds, terms and names refuse and promise."""

from __future__ import annotations

import math

import pytest
import torch

from zo_core import Closure, GradientEstimate, Params, Term, derive_seed, directions, methods
from zo_core.base import Cost, finite, merge, stable_key


def test_keys_come_from_names_alone():
    wide = Params([("a", torch.zeros(2)), ("b", torch.zeros(2))])
    assert wide[1].key == Params([("b", torch.zeros(7))])[0].key == stable_key("b")
    assert stable_key("b") == 0x754F854DE3C27284, "keys are part of the trajectory format"


def test_derived_seeds_are_part_of_the_format():
    assert derive_seed(0, 0) == 0x514A893A552EC42B


def test_derived_seeds_do_not_meet():
    seeds = {derive_seed(run, step, q) for run in range(8) for step in range(64) for q in range(4)}
    assert len(seeds) == 8 * 64 * 4
    assert derive_seed(1, 23) != derive_seed(12, 3)


def test_tied_weights_are_held_once():
    weight = torch.nn.Parameter(torch.zeros(3))
    params = Params([("embed", weight), ("head", weight)])
    assert [p.name for p in params] == ["embed"]
    assert (params.elements, params.bytes) == (3, 12)


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ([], "at least one"),
        ([("w", torch.zeros(2)), ("w", torch.ones(2))], "twice"),
        ([("w", torch.zeros(2, dtype=torch.int64))], "floating-point"),
        ([("w", torch.zeros(1).expand(4))], "contiguous"),
        ([("v", torch.zeros(2)), ("w", torch.zeros(3, 0))], r"'w' has no elements .*\(3, 0\)"),
    ],
)
def test_params_refuse_what_cannot_be_trained(named, message):
    with pytest.raises(ValueError, match=message):
        Params(named)


def test_merge_adds_equal_seeds_and_drops_what_cancels():
    terms = [Term(1, 0.5), Term(2, 1.0), Term(1, -0.5), Term(2, 1.0)]
    assert merge(terms) == (Term(2, 2.0),)


def test_coefficients_are_float32():
    with pytest.raises(ValueError, match="float32"):
        GradientEstimate(directions.build("gaussian"), (Term(1, 0.1),), ())


def test_a_loss_per_example_is_refused():
    with pytest.raises(ValueError, match="shape"):
        finite(torch.zeros(3))


@pytest.mark.parametrize("data", ["batch", "anchor"])
def test_a_micro_batch_that_is_not_averaged_is_refused(data):
    parts = [(2.0, lambda: torch.ones(())), (2.0, lambda: torch.ones(2))]
    with pytest.raises(ValueError, match=r"shape \(\), got \(2,\); average it first"):
        Closure(parts, parts)(data)
    assert Closure([(1.0, lambda: torch.ones(1)), (3.0, lambda: torch.zeros(()))])() == 0.25


def test_an_anchor_must_be_given():
    with pytest.raises(ValueError, match="anchor"):
        Closure(lambda: torch.zeros(()))("anchor")


def test_a_score_without_gradient_is_refused_by_first_order_methods():
    params = Params([("w", torch.zeros(2, requires_grad=True))])
    method = methods.build("ft_sgd")
    score = Closure(lambda: params[0].tensor.sum(), differentiable=False)
    with pytest.raises(ValueError, match="zeroth-order"):
        method.step_(params, score, method.init(params), seed=0, lr=0.1)


def test_costs_of_parts_add_up():
    total = Cost(queries=2, noise_passes=3, scratch_bytes=5) + Cost(
        noise_passes=1, scratch_bytes=9
    )
    assert total == Cost(queries=2, noise_passes=4, scratch_bytes=9)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mezzo", {}, "Unknown method 'mezzo'. Did you mean 'mezo'"),
        ("mezo", {"epss": 1.0}, "Did you mean 'eps'"),
        ("mezo", {"eps": "big"}, "must be a float"),
        ("mezo", {"eps": True}, "must be a float"),
        ("mezo", {"eps": 0.0}, "positive"),
        ("mezo", {"eps": math.inf}, "finite"),
        ("mezo", {"eps": math.nan}, "finite"),
        ("mezo", {"clip": math.inf}, "finite"),
        ("mezo", {"clip": math.nan}, "finite"),
        ("mezo", {"clip": -1.0}, "0 or more"),
        ("mezo", {"weight_decay": math.inf}, "finite"),
        ("mezo", {"weight_decay": math.nan}, "finite"),
        ("forward_gradient", {"restore": "exact"}, "nothing is restored"),
        ("forward_gradient", {"restore": "batched"}, "nothing is restored"),
        ("mezo", {"distribution": "gausian"}, "Did you mean 'gaussian'"),
    ],
)
def test_bad_names_and_options_are_answered_with_the_nearest(name, options, message):
    with pytest.raises(ValueError, match=message):
        methods.build(name, **options)
