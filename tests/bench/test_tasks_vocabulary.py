"""Cross-entropy over a vocabulary in pieces, and a head that is asked for less than all."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Gemma2Config

from bench import models, tasks
from bench.built import build
from bench.models import LoadedModel
from bench.objective import Seen, objective
from bench.records import RunSpec
from bench.tasks.kit import forward, vocabulary
from bench.tasks.kit.encode import Encoded
from bench.tasks.kit.forward import token_losses
from bench.tasks.kit.options import Options
from bench.tasks.kit.output_head import head_asked
from bench.tasks.kit.values import Batch
from bench.tasks.kit.vocabulary import IGNORED, logit_losses, vocabulary_losses

HIDDEN, WORDS, TOKENS = 8, 301, 50


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Five pieces, the last of them shorter."""
    monkeypatch.setattr(vocabulary, "_PIECE", 64 * TOKENS)
    monkeypatch.setattr(vocabulary, "_NARROWEST", 48)
    assert len(list(vocabulary._pieces(TOKENS, WORDS))) == 5


def drawn(dtype=torch.float32, answers=2):
    """Return hidden states, weights, bias and targets, a quarter of them not asked."""
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, generator=g).to(dtype)
    weight = torch.randn(WORDS, HIDDEN, generator=g).to(dtype)
    targets = torch.randint(0, WORDS, (TOKENS, answers), generator=g)
    targets[torch.rand(targets.shape, generator=g) < 0.25] = IGNORED
    targets[0], targets[1] = 0, WORDS - 1
    return hidden, weight, torch.randn(WORDS, generator=g).to(dtype), targets


def textbook(hidden, weight, bias, targets):
    logits = F.linear(hidden, weight, bias).float()
    columns = [
        F.cross_entropy(logits, column, ignore_index=IGNORED, reduction="none")
        for column in targets.unbind(1)
    ]
    return torch.stack(columns, 1)


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pieces_of_the_vocabulary_give_the_cross_entropy_of_all_logits(dtype, biased):
    hidden, weight, bias, targets = drawn(dtype)
    bias = bias if biased else None
    expected = textbook(hidden, weight, bias, targets)
    assert torch.allclose(vocabulary_losses(hidden, weight, bias, targets), expected, atol=1e-5)
    logits = F.linear(hidden, weight, bias)
    assert torch.allclose(logit_losses(logits, targets), expected, atol=1e-5)


@pytest.mark.parametrize("trained", [(0, 1, 2), (0,), (1,), (1, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_those_of_all_logits(dtype, trained):
    found = []
    for losses in (textbook, vocabulary_losses):
        *factors, targets = drawn(dtype)
        for i in trained:
            factors[i].requires_grad_()
        given = torch.randn(targets.shape, generator=torch.Generator().manual_seed(1))
        (losses(*factors, targets) * given).sum().backward()
        found.append([f.grad for f in factors])
    for expected, seen in zip(*found, strict=True):
        assert (expected is None) == (seen is None)
        if expected is not None:
            assert expected.dtype == seen.dtype
            assert (expected - seen).norm() <= expected.norm() * (
                1e-6 if dtype == torch.float32 else 5e-3
            )


def test_autocast_rounds_logits_and_gradients_as_it_does_with_all_of_them():
    found = []
    for losses in (textbook, vocabulary_losses):
        hidden, weight, bias, targets = drawn()
        weight.requires_grad_(), hidden.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = losses(hidden, weight, bias, targets)
        loss.sum().backward()
        found.append((loss, weight.grad, hidden.grad))
    (loss, *grads), (expected, *expected_grads) = found
    assert torch.allclose(loss, expected, atol=1e-5)
    for grad, like in zip(grads, expected_grads, strict=True):
        assert grad.dtype == torch.float32
        assert (grad - like).norm() <= 5e-3 * like.norm()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated")  # torch, on first use
def test_forward_mode_derivatives_go_through():
    *factors, targets = drawn()
    tangents = [torch.ones_like(f) for f in factors]
    with torch.no_grad(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(f, t) for f, t in zip(factors, tangents, strict=True)]
        pairs = [forward_ad.unpack_dual(f(*duals, targets)) for f in (vocabulary_losses, textbook)]
    assert torch.allclose(pairs[0].tangent, pairs[1].tangent, atol=1e-4)


class Largest(TorchDispatchMode):
    """Notes the largest number of elements that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not out._is_view():
            self.elements = max(self.elements, out.numel())
        return out


def test_no_tensor_as_large_as_all_logits_is_made_in_either_direction():
    hidden, weight, bias, targets = drawn()
    weight.requires_grad_(), hidden.requires_grad_()
    with Largest() as seen:
        vocabulary_losses(hidden, weight, bias, targets).sum().backward()
    assert 48 * TOKENS <= seen.elements < TOKENS * WORDS / 4
    with Largest() as whole:
        textbook(hidden, weight, bias, targets)
    assert whole.elements == TOKENS * WORDS


def test_what_is_not_finite_is_not_hidden():
    hidden, weight, _, targets = drawn()
    targets[:] = 3
    for bad in (float("nan"), float("inf")):
        broken = weight.clone()
        broken[WORDS - 1] = bad  # in the last piece, and no target
        assert not vocabulary_losses(hidden, broken, None, targets).isfinite().any()


# Models


def loaded(name="opt-tiny"):
    return models.load(name, dtype="float32", device="cpu", seed=0)


def language(model, kind="causal"):
    """Return a batch of language modelling and its losses in plain code."""
    ids = torch.randint(9, 73, (3, 7), generator=torch.Generator().manual_seed(0))
    targets = torch.cat([ids[:, 1:], torch.full((3, 1), IGNORED)], 1)
    logits = model(input_ids=ids).logits
    plain = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none").sum(1) / 6
    return Batch((0, 1, 2), ids, targets), plain


@pytest.mark.parametrize("name", ["opt-tiny", "llama-tiny", "roberta-tiny"])
def test_a_models_loss_and_gradients_are_those_of_its_logits_and_the_head_runs_once(name):
    made, calls = loaded(name), []
    made.module.get_output_embeddings().register_forward_hook(
        lambda head, inputs, out: calls.append(out.shape)
    )
    batch, expected = language(made.module)
    calls.clear()
    losses = token_losses(made.module, made.kind, batch)
    assert calls == [(3, 7, 1)]  # losses left the head, not logits
    assert torch.allclose(losses, expected, atol=1e-5)
    grads = []
    for one in (expected, losses):
        made.module.zero_grad()
        one.mean().backward()
        grads.append([p.grad.clone() for p in made.module.parameters() if p.grad is not None])
    for plain, ours in zip(*grads, strict=True):
        assert torch.allclose(plain, ours, atol=1e-5)


def test_a_model_that_changes_its_logits_after_the_head_gets_them_whole():
    config = Gemma2Config(
        vocab_size=80, hidden_size=16, intermediate_size=16, num_hidden_layers=1, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, final_logit_softcapping=0.05,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    batch, expected = language(model)
    for _ in range(2):  # found out, then known
        assert torch.allclose(token_losses(model, "causal", batch), expected, atol=1e-5)
    assert model in forward._whole


@pytest.mark.parametrize("restore", ["arithmetic", "exact", "batched"])
def test_every_way_to_perturb_sees_the_same_losses_of_a_language_model(restore):
    def losses(way):
        spec = RunSpec(
            method="mezo", model="llama-tiny", task="random_tokens", batch_size=2, seq_len=16,
            steps=1, options={"restore": way, "eps": 1e-2},
        )  # fmt: skip
        built = build(spec)
        looked_at = objective(spec, built.task, built.module, built.task.batch(0), Seen())
        state = built.method.init(built.params)
        _, info = built.method.step_(built.params, looked_at, state, seed=1, lr=0.0)
        return torch.tensor(info.losses)

    assert torch.allclose(losses(restore), losses("arithmetic"), atol=1e-6)
    assert losses(restore).unique().numel() == 2


def test_rows_picked_out_of_a_sequence_lie_together_for_a_frozen_head():
    made = loaded()
    made.module.requires_grad_(False)
    head = made.module.get_output_embeddings()
    given, own = [], head.forward
    head.forward = lambda hidden: (given.append(hidden.is_contiguous()), own(hidden))[1]
    for asked in (None, lambda linear, hidden: hidden):
        with head_asked(made.module, asked) as seen:
            made.module(torch.arange(9, 23).view(2, 7), logits_to_keep=3)
        assert seen == []  # it has a forward of its own, so it was left to it
    assert given == [True, True]


def test_label_words_are_the_only_logits_that_are_made():
    for name in ("opt-tiny", "roberta-tiny"):
        made, shapes = loaded(name), []
        spec = RunSpec(
            method="mezo", model=name, task="marker", seq_len=16, batch_size=4, steps=1
        )  # fmt: skip
        task = tasks.build(spec, made)
        made.module.get_output_embeddings().register_forward_hook(
            lambda head, inputs, out, shapes=shapes: shapes.append(out.shape[-1])
        )
        task.loss(made.module, task.batch(0))
        assert shapes == [2]


# Options


def optional(model: LoadedModel, *options):
    """Return the batch of one question for each set of options."""
    questions = [(9, 10, 11), (13, 14)]
    rows = [
        Encoded(q, 0, len(q) - 1, tuple(((*q, *a), len(a)) for a in some))
        for q, some in zip(questions, options, strict=True)
    ]
    return Options(model, "cpu"), Options(model, "cpu").collate(rows, (0, 1))


def test_options_that_differ_in_their_last_token_are_read_off_one_sequence():
    model, alike = loaded(), [(20, 21), (20, 22), (20, 23)]
    chooser, shared = optional(model, alike, alike)
    assert shared.input_ids.shape == (2, 4) and shared.answers.shape == (6, 2)
    logits = chooser.logits(model.module, shared)
    assert logits.std() > 1e-3
    # Beside an example whose options are otherwise, each is a sequence of its own.
    for mixed in ([alike, [(20, 21), (25, 22), (20,)]], [[(20,), (24, 26), (20, 23)], alike]):
        chooser, apart = optional(model, *mixed)
        assert apart.input_ids.shape[0] == 6
        same = mixed.index(alike)
        again = chooser.logits(model.module, apart)[same]
        assert torch.allclose(logits[same], again, atol=1e-5)


def test_shared_options_are_sliced_and_repeated_with_their_examples():
    model = loaded()
    chooser, shared = optional(model, [(20, 21), (20, 22)], [(20, 21), (20, 22)])
    logits = chooser.logits(model.module, shared)
    assert torch.allclose(chooser.logits(model.module, shared.part(1, 2)), logits[1:], atol=1e-5)
    twice = chooser.logits(model.module, shared.tiled(2))
    assert torch.allclose(twice, logits.repeat(2, 1), atol=1e-5)


# Evaluation


@pytest.mark.parametrize("which", ["label_words", "options", "head"])
def test_evaluation_depends_on_no_batch_and_waits_for_no_batch(which, monkeypatch):
    results, waits = [], []
    for name in ("item", "tolist", "__float__", "__int__", "cpu"):
        own = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda *a, own=own, name=name: (waits.append(name), own(*a))[1]
        )
    for size in (1, 4, 40):
        spec = RunSpec(
            method="mezo", model="opt-tiny", task="marker", objective=which, seq_len=16, steps=0,
            eval_examples=40, eval_batch_size=size,
        )  # fmt: skip
        made = models.load(
            "opt-tiny", dtype="float32", device="cpu", seed=0,
            head_classes=tasks.head_classes(spec),
        )  # fmt: skip
        task = tasks.build(spec, made)
        waits.clear()
        results.append(task.evaluate(made.module))
        assert waits == ["tolist", "item"]
    assert len({(r.n, r.correct, tuple(r.predictions)) for r in results}) == 1
    assert [r.loss for r in results] == pytest.approx([results[0].loss] * 3, abs=1e-6)
