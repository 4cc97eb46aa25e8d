"""How examples become a loss: each objective against plain code, whole, sliced and repeated."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from bench import models, tasks
from bench.records import RunSpec, TaskFacts, UserError
from bench.tasks.kit.assemble import choice
from bench.tasks.kit.encode import Encoded

CAUSAL = ["opt-tiny", "llama-tiny"]
TINY = [*CAUSAL, "roberta-tiny"]
OBJECTIVES = ["label_words", "options", "answer", "head"]
CASES = [(n, o) for n in CAUSAL for o in OBJECTIVES] + [
    ("roberta-tiny", "label_words"),
    ("roberta-tiny", "head"),
]
QUESTIONS = [(9, 10, 11, 12), (13, 14), (15, 16, 17)]
ANSWERS = [((20, 21, 22), (23,)), ((24,), (25, 26)), ((27, 28), (29, 30, 31, 32))]
LABELS = [0, 1, 1]


def spec_of(task="marker", **fields):
    given = {"train_examples": 32, "seq_len": 16, "batch_size": 8, "steps": 1} | fields
    return RunSpec(method="mezo", model="any", task=task, **given)


def made(name, task="marker", **fields):
    """Return the model and its task; a classification head is drawn, as zero tells nothing."""
    spec = spec_of(task, **fields)
    loaded = models.load(
        name, dtype="float32", device="cpu", seed=0, head_classes=tasks.head_classes(spec)
    )
    if hasattr(loaded.module, "head"):
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(1)
            for parameter in loaded.module.head.parameters():
                parameter.normal_()
    return loaded, tasks.build(spec, loaded)


def two_options(loaded, objective, **fields):
    """Questions and options of uneven lengths, so that everything is padded."""
    rows = [
        Encoded(q, label, len(q) - 1, tuple(((*q, *a), len(a)) for a in options))
        for q, label, options in zip(QUESTIONS, LABELS, ANSWERS, strict=True)
    ]
    spec = spec_of(objective=objective, **fields)
    facts = TaskFacts(
        name="own", source="own", prompt=None, objective=objective, labels=["a", "b"], train_n=3,
        eval_n=3, eval_labels=LABELS, eval_digest=None,
    )  # fmt: skip
    return choice(facts, spec, loaded, rows, rows)


def mean_log_likelihood(module, question, answer):
    """In plain code: one sequence at a time, nothing padded, all logits."""
    logits = module(torch.tensor([[*question, *answer]])).logits[0]
    places = range(len(question) - 1, len(question) - 1 + len(answer))
    likelihoods = logits.log_softmax(-1)
    return torch.stack([likelihoods[p, a] for p, a in zip(places, answer, strict=True)]).mean()


@pytest.mark.parametrize("name", CAUSAL)
def test_options_are_the_cross_entropy_over_mean_log_likelihoods(name):
    loaded = models.load(name, dtype="float32", device="cpu", seed=0)
    task = two_options(loaded, "options")
    with torch.inference_mode():
        scores = torch.stack(
            [
                torch.stack([mean_log_likelihood(loaded.module, q, a) for a in options])
                for q, options in zip(QUESTIONS, ANSWERS, strict=True)
            ]
        )
        expected = -scores.log_softmax(1)[range(3), LABELS]
        losses = task.losses(loaded.module, task.collate((0, 1, 2)))
        assert torch.allclose(losses, expected, atol=1e-5)
        result = task.evaluate(loaded.module)
    assert result.predictions == scores.argmax(1).tolist()
    assert result.loss == pytest.approx(expected.mean().item(), abs=1e-5)
    assert result.correct == sum(p == y for p, y in zip(result.predictions, LABELS, strict=True))


@pytest.mark.parametrize("name", CAUSAL)
def test_answer_is_teacher_forcing_on_the_right_answer_alone(name):
    loaded = models.load(name, dtype="float32", device="cpu", seed=0)
    task = two_options(loaded, "answer")
    batch = task.collate((2, 0, 1))
    assert batch.input_ids.shape[0] == 3
    with torch.inference_mode():
        expected = [
            -mean_log_likelihood(loaded.module, QUESTIONS[i], ANSWERS[i][LABELS[i]])
            for i in (2, 0, 1)
        ]
        losses = task.losses(loaded.module, batch)
        assert torch.allclose(losses, torch.stack(expected), atol=1e-5)
        assert task.evaluate(loaded.module) == two_options(loaded, "options").evaluate(
            loaded.module
        )


@pytest.mark.parametrize("name", CAUSAL)
def test_options_of_one_token_are_label_words(name):
    loaded, words = made(name, eval_examples=20)
    _, options = made(name, objective="options", eval_examples=20)
    with torch.inference_mode():
        pair = [t.losses(loaded.module, t.batch(3)) for t in (words, options)]
    assert torch.allclose(*pair, atol=1e-6)
    assert words.evaluate(loaded.module).predictions == (
        options.evaluate(loaded.module).predictions
    )


def test_head_logits_are_a_linear_map_of_the_last_token_or_of_the_mean():
    for name in TINY:
        loaded, task = made(name, objective="head")
        batch = task.collate((3,))
        module = loaded.module
        with torch.inference_mode():
            hidden = module.base(batch.input_ids)[0][0]  # (T, H)
            read = hidden.mean(0) if name == "roberta-tiny" else hidden[-1]
            logits = module.head.weight @ read + module.head.bias
            expected = F.cross_entropy(logits[None], batch.targets)
            assert torch.allclose(task.loss(module, batch), expected, atol=1e-5)


@pytest.mark.parametrize(("name", "objective"), CASES)
def test_padding_changes_no_loss(name, objective):
    loaded, task = made(name, objective=objective)
    batch = task.batch(0)
    assert batch.attention_mask is not None and (batch.attention_mask == 0).any()
    with torch.inference_mode():
        together = task.losses(loaded.module, batch)
        alone = [task.losses(loaded.module, task.collate((i,))) for i in batch.examples]
    assert together.shape == (8,) and together.dtype == torch.float32
    assert len(set(together.tolist())) > 2
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


@pytest.mark.parametrize("objective", ["label_words", "options", "answer"])
def test_logits_are_made_for_the_places_that_are_asked_and_no_others(objective):
    loaded, _ = made("llama-tiny")
    task = two_options(loaded, objective) if objective != "label_words" else made("llama-tiny")[1]
    batch = task.collate((0, 1, 2))
    places = []
    loaded.module.lm_head.register_forward_hook(lambda m, i, o: places.append(o.shape[:2]))
    task.loss(loaded.module, batch)
    assert places == [{"label_words": (3, 1), "options": (6, 4), "answer": (3, 4)}[objective]]


# Scores


@pytest.mark.parametrize("objective", ["label_words", "options", "head"])
def test_accuracy_is_one_minus_the_share_that_is_right_and_has_no_gradient(objective):
    loaded, task = made("opt-tiny", objective=objective, score="accuracy", batch_size=32)
    _, smooth = made("opt-tiny", objective=objective, eval_examples=1)
    batch = task.batch(0)
    losses = task.losses(loaded.module, batch)
    with torch.inference_mode():
        alone = [
            smooth.evaluator.args[0].logits(loaded.module, task.collate((i,)))
            for i in batch.examples
        ]
    wrong = [int(a.argmax()) != int(y) for a, y in zip(alone, batch.targets, strict=True)]
    assert losses.tolist() == [float(w) for w in wrong] and 0 < sum(wrong) < 32
    assert task.loss(loaded.module, batch).item() == sum(wrong) / 32
    assert losses.dtype == torch.float32 and not losses.requires_grad
    assert smooth.differentiable and not task.differentiable


def test_scores_that_can_not_be_had_are_refused():
    with pytest.raises(UserError, match=r"score = 'f1'.*Choose: cross_entropy, accuracy\."):
        made("opt-tiny", score="f1")
    with pytest.raises(UserError, match=r"score = 'accuracy'.*Choose: cross_entropy\."):
        made("opt-tiny", objective="answer", score="accuracy")
    with pytest.raises(UserError, match=r"score = 'accuracy' can't be had from .*random_tokens"):
        made("opt-tiny", "random_tokens", score="accuracy")


# Parts and repetitions

EVERY = [*CASES, *[(name, "random_tokens") for name in TINY]]


def every(name, which, **fields):
    if which == "random_tokens":
        return made(name, "random_tokens", **fields)
    return made(name, objective=which, **fields)


@pytest.mark.parametrize(("name", "which"), EVERY)
def test_micro_batches_are_slices_whose_weighted_losses_are_the_whole(name, which):
    loaded, task = every(name, which, micro_batch_size=3)
    batch = task.batch(0)
    parts = task.micro_batches(batch)
    assert [len(p.examples) for p in parts] == [3, 3, 2]
    assert sum((p.examples for p in parts), ()) == batch.examples
    if batch.attention_mask is None:  # nothing to gain from another length: no copies
        assert parts[0].input_ids.data_ptr() == batch.input_ids.data_ptr()
    for part in parts:  # as short as its own sequences let it be
        assert (
            part.attention_mask is None
            or part.attention_mask.sum(1).max() == (part.input_ids.shape[1])
        )
    with torch.inference_mode():
        whole = task.losses(loaded.module, batch)
        sliced = torch.cat([task.losses(loaded.module, p) for p in parts])
        weighted = sum(len(p.examples) * task.loss(loaded.module, p) for p in parts) / 8
        assert torch.allclose(whole, sliced, atol=1e-5)
        assert torch.isclose(weighted, task.loss(loaded.module, batch), atol=1e-5)
    for size in (None, 8, 100):
        _, unsliced = every(name, which, micro_batch_size=size)
        (only,) = unsliced.micro_batches(batch)
        assert only is batch


@pytest.mark.parametrize(("name", "which"), EVERY)
def test_tiled_batches_give_each_model_the_losses_of_the_single_one(name, which):
    loaded, task = every(name, which)
    batch = task.batch(0)
    tiled = task.tiled(batch, 3)
    assert tiled.examples == batch.examples * 3
    with torch.inference_mode():
        single = task.losses(loaded.module, batch)
        many = task.losses(loaded.module, tiled)
    assert many.shape == (24,) and torch.allclose(many, single.repeat(3), atol=1e-6)
    assert torch.equal(tiled.input_ids, torch.cat([batch.input_ids] * 3))


def test_tiled_accuracy_is_that_of_the_single_batch():
    loaded, task = made("opt-tiny", objective="options", score="accuracy")
    batch = task.batch(0)
    single = task.losses(loaded.module, batch).tolist()
    assert task.losses(loaded.module, task.tiled(batch, 2)).tolist() == single * 2


@pytest.mark.parametrize("which", [*OBJECTIVES, "random_tokens"])
def test_anchor_is_the_first_examples_in_their_order_and_is_made_once(which):
    def sizes(**fields):
        _, task = every("opt-tiny", which, **fields)
        return [b.examples for b in task.anchor()]

    assert sizes(anchor_examples=5, micro_batch_size=2) == [(0, 1), (2, 3), (4,)]
    assert sizes(anchor_examples=12) == [tuple(range(8)), tuple(range(8, 12))]
    assert sum(sizes(), ()) == sum(sizes(anchor_examples=1000), ()) == tuple(range(32))
    assert sizes(seed=0) == sizes(seed=1)
    _, task = every("opt-tiny", which, anchor_examples=5)
    calls = []
    object.__setattr__(task, "collate", lambda chosen: calls.append(chosen))
    task.batch(0)
    assert len(calls) == 1  # nothing is made before it is asked for
    assert task.anchor() is task.anchor()
    assert len(calls) == 2


@pytest.mark.parametrize(("name", "objective"), CASES)
def test_every_objective_is_traced_on_fake_tensors(name, objective):
    spec = spec_of(objective=objective, micro_batch_size=4)
    with FakeTensorMode():
        shape = models.load_shape(
            name, dtype="bfloat16", device="cpu", head_classes=tasks.head_classes(spec)
        )
        task = tasks.build(spec, shape)
        for part in task.micro_batches(task.batch(0)):
            loss = task.loss(shape.module, part)
            loss.backward()
    assert loss.shape == () and loss.dtype == torch.float32


# What is offered


def test_objectives_that_do_not_suit_are_refused_with_those_that_do():
    with pytest.raises(
        UserError, match=r"objective of task 'copa' 'head'.* There are: answer, options"
    ):
        tasks.head_classes(spec_of("copa", objective="head"))
    with pytest.raises(UserError, match=r"'roberta-tiny' is a masked.*Choose: label_words, head"):
        made("roberta-tiny", objective="options")
    for ask in (lambda s: tasks.head_classes(s), lambda s: tasks.build(s, None)):
        with pytest.raises(UserError, match=r"one loss of its own. Remove objective = 'head'"):
            ask(spec_of("random_tokens", objective="head"))
    with pytest.raises(UserError, match="demonstrations must be 0, not 2"):
        made("opt-tiny", demonstrations=2)


def test_default_objective_is_the_first_that_suits_and_stands_in_the_facts():
    assert made("opt-tiny")[1].facts.objective == "label_words"
    assert made("opt-tiny", objective="answer")[1].facts.objective == "answer"
    assert made("opt-tiny", "random_tokens")[1].facts.objective is None
    assert tasks.objectives("boolq")[0] == "options" and tasks.objectives("squad") == ["answer"]
    assert tasks.objectives("mr")[0] == "label_words" and tasks.objectives("random_tokens") == []


def test_head_has_as_many_classes_as_the_task_and_is_there_only_if_asked_for():
    assert tasks.head_classes(spec_of("mr")) is None
    for task, classes in {"mr": 2, "cb": 3, "boolq": 2, "marker": 2}.items():
        assert tasks.head_classes(spec_of(task, objective="head")) == classes
