"""Laws of every task: batches, losses, evaluation; on tiny models, without data."""

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from bench import models, tasks
from bench.records import RunSpec, UserError
from bench.tasks.kit.order import batch_indices

TINY = ["opt-tiny", "llama-tiny", "roberta-tiny"]
OFFLINE = ["marker", "random_tokens"]


@pytest.fixture(scope="module", params=TINY)
def loaded(request):
    return models.load(request.param, dtype="float32", device="cpu", seed=0)


def build(loaded, task="marker", **fields):
    given = {"train_examples": 64, "seq_len": 16, "batch_size": 8, "steps": 1} | fields
    return tasks.build(RunSpec(method="mezo", model="any", task=task, **given), loaded)


def rows(task):
    return task.collate.args[0]


def heldback(task):
    return task.evaluator.args[1]


def candidates(task):
    return task.evaluator.args[0].candidates


def copies(batch):
    return {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in vars(batch).items()}


def test_names_are_the_files_and_need_no_torch():
    assert {"mr", "sst2", "random_tokens", "marker"} <= set(tasks.names())
    assert "kit" not in tasks.names()
    code = "import sys; from bench import tasks; tasks.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_task_is_answered_with_the_nearest(loaded):
    with pytest.raises(UserError, match=r"Unknown task 'markers'\. Did you mean 'marker'\?"):
        build(loaded, "markers")
    with pytest.raises(UserError, match="Unknown task 'kit'"):
        tasks.prepare("kit")


@pytest.mark.parametrize("task", OFFLINE)
def test_tasks_without_data_have_nothing_to_prepare(task):
    tasks.prepare(task)


# Orders


def test_an_epoch_takes_every_example_once_and_passes_over_the_rest():
    epoch = [batch_indices(10, 3, seed=1, step=step) for step in range(3)]
    assert all(len(batch) == 3 for batch in epoch)
    assert len({i for batch in epoch for i in batch}) == 9
    following = [batch_indices(10, 3, seed=1, step=step) for step in range(3, 6)]
    assert epoch != following
    assert {i for step in range(90) for i in batch_indices(10, 3, 1, step)} == set(range(10))


def test_order_follows_the_seed_and_small_train_sets_are_taken_whole():
    assert batch_indices(99, 9, seed=0, step=0) != batch_indices(99, 9, seed=1, step=0)
    assert sorted(batch_indices(3, 8, seed=0, step=5)) == [0, 1, 2]


@pytest.mark.parametrize("task", OFFLINE)
def test_batch_is_a_function_of_seed_and_step_alone(loaded, task):
    before = torch.get_rng_state()
    steps = [copies(build(loaded, task).batch(step)) for step in (0, 1, 9, 25)]
    again = build(loaded, task)
    assert [copies(again.batch(step)) for step in (25, 9, 1, 0)][::-1] == steps
    assert copies(build(loaded, task, seed=1).batch(0)) != steps[0]
    assert steps[0] != steps[1]
    assert torch.equal(before, torch.get_rng_state())


# Losses


@pytest.mark.parametrize("task", OFFLINE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loss_is_a_differentiable_float32_number(task, dtype):
    for name in TINY:
        loaded = models.load(name, dtype=dtype, device="cpu", seed=0)
        built = build(loaded, task)
        loss = built.loss(loaded.module, built.batch(0))
        assert loss.shape == () and loss.dtype == torch.float32
        guess = 2 if task == "marker" else loaded.vocabulary
        assert loss.item() == pytest.approx(math.log(guess), abs=0.2)
        loss.backward()
        assert all(p.grad is not None for p in loaded.module.parameters())


@pytest.mark.parametrize("task", OFFLINE)
def test_step_runs_on_fake_tensors(loaded, task):
    """The step that is measured is the step that is traced: no value is ever asked for."""
    with FakeTensorMode():
        shape = models.load_shape(loaded.facts.name, dtype="bfloat16", device="cpu")
        built = build(shape, task)
        real, fake = build(loaded, task).batch(3), built.batch(3)
        assert (real.attention_mask is None) == (fake.attention_mask is None)
        assert real.input_ids.shape == fake.input_ids.shape
        loss = built.loss(shape.module, fake)
        loss.backward()
    assert loss.shape == () and loss.dtype == torch.float32


def test_padding_changes_nothing(loaded):
    task = build(loaded, batch_size=16)
    batch = task.batch(0)
    assert batch.attention_mask is not None and (batch.attention_mask == 0).any()
    with torch.inference_mode():
        together = task.loss(loaded.module, batch)
        single = [task.loss(loaded.module, task.collate((i,))) for i in batch.examples]
    assert together.item() == pytest.approx(sum(s.item() for s in single) / 16, abs=1e-5)


def test_nothing_padded_means_no_mask_and_no_positions(loaded):
    task = build(loaded)
    same = [i for i, row in enumerate(rows(task)) if len(row.ids) == 8][:4]
    batch = task.collate(tuple(same))
    assert batch.attention_mask is None and batch.position_ids is None
    assert build(loaded, "random_tokens").batch(0).attention_mask is None


def test_label_word_loss_is_the_textbook_formula(loaded):
    task = build(loaded, batch_size=1)
    batch = task.batch(0)
    row = rows(task)[batch.examples[0]]
    with torch.inference_mode():
        logits = loaded.module(torch.tensor([row.ids])).logits[0, row.answer_at]
        expected = F.cross_entropy(logits[list(candidates(task))], torch.tensor(row.label))
        assert torch.isclose(task.loss(loaded.module, batch), expected, atol=1e-6)


def test_random_token_loss_is_the_loss_of_transformers(loaded):
    task = build(loaded, "random_tokens")
    batch = task.batch(0)
    assert batch.input_ids.shape == (8, 16) and task.facts.eval_n == 0
    with torch.inference_mode():
        expected = loaded.module(batch.input_ids, labels=batch.input_ids).loss
        assert torch.isclose(task.loss(loaded.module, batch), expected, atol=1e-6)


def test_random_tokens_hold_no_special_token(loaded):
    ids = build(loaded, "random_tokens", seq_len=100).batch(0).input_ids
    assert ids.min() >= 4 and ids.max() < loaded.vocabulary


# Evaluation


def test_evaluation_counts_in_the_order_of_the_held_back_set(loaded):
    task = build(loaded, eval_examples=50, eval_batch_size=7)
    result = task.evaluate(loaded.module)
    assert result.n == task.facts.eval_n == len(result.predictions) == 50
    expected, losses = [], []
    with torch.inference_mode():
        for row in heldback(task):
            logits = loaded.module(torch.tensor([row.ids])).logits[0, row.answer_at]
            chosen = logits[list(candidates(task))]
            expected.append(int(chosen.argmax()))
            losses.append(F.cross_entropy(chosen, torch.tensor(row.label)).item())
    assert result.predictions == expected
    pairs = zip(expected, task.facts.eval_labels, strict=True)
    assert result.correct == sum(a == b for a, b in pairs)
    assert result.loss == pytest.approx(sum(losses) / 50, abs=1e-5)


def test_evaluation_restores_the_mode_and_leaves_no_gradient(loaded):
    module = loaded.module
    task = build(loaded, eval_examples=8)
    before = torch.get_rng_state()
    for mode in (True, False):
        module.train(mode)
        first, second = task.evaluate(module), task.evaluate(module)
        assert first == second  # no dropout
        assert all(m.training == mode for m in module.modules())
    assert torch.equal(before, torch.get_rng_state())


def test_held_back_set_is_the_same_for_every_seed(loaded):
    few, many = build(loaded, eval_examples=20), build(loaded, eval_examples=30, seed=4)
    assert heldback(few) == heldback(many)[:20]
    assert few.facts.eval_labels == many.facts.eval_labels[:20]
    assert few.facts.eval_digest != many.facts.eval_digest
    assert few.facts.eval_digest == build(loaded, eval_examples=20, seed=9).facts.eval_digest
    assert build(loaded).facts.eval_digest is None
    with pytest.raises(ValueError, match="nothing to evaluate"):
        build(loaded).evaluate(loaded.module)


@pytest.mark.parametrize("name", TINY)
def test_tiny_models_learn_the_marker(name):
    loaded = models.load(name, dtype="float32", device="cpu", seed=0)
    task = build(loaded, batch_size=16, eval_examples=200)
    optimiser = torch.optim.AdamW(loaded.module.parameters(), lr=2e-3)
    assert task.evaluate(loaded.module).correct < 180
    for step in range(60):
        task.loss(loaded.module, task.batch(step)).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert task.evaluate(loaded.module).correct >= 195


# What a user can get wrong


def test_runs_that_make_no_sense_are_refused(loaded):
    with pytest.raises(UserError, match="has nothing to evaluate: eval_examples must be 0, not 5"):
        build(loaded, "random_tokens", eval_examples=5)
    with pytest.raises(UserError, match=r"seq_len = 2000 is longer than .* can take: 128 tokens"):
        build(loaded, "random_tokens", seq_len=2000)
    with pytest.raises(UserError, match="needs seq_len = 8 or more, not 4"):
        build(loaded, seq_len=4)
    for task in OFFLINE:
        with pytest.raises(UserError, match="has no prompts"):
            build(loaded, task, prompt="it_was")
