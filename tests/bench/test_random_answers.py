"""Random questions: always 50 tokens written, by any causal model, and without data."""

import pytest
import torch

from bench import models, tasks
from bench.records import RunSpec, UserError
from bench.tasks.kit import forward
from bench.tasks.kit.generation import NEW_TOKENS


@pytest.fixture(scope="module", params=["opt-tiny", "llama-tiny"])
def loaded(request):
    return models.load(request.param, dtype="float32", device="cpu", seed=0)


def build(loaded, **fields):
    given = {"seq_len": 16, "batch_size": 2, "steps": 1, "train_examples": 4} | fields
    return tasks.build(RunSpec(method="mezo", model="any", task="random_answers", **given), loaded)


def test_an_answer_is_always_as_long_as_may_be(loaded, monkeypatch):
    written = []
    real = forward.greedy

    def greedy(*arguments):
        written.append(real(*arguments))
        return written[-1]

    monkeypatch.setattr("bench.tasks.kit.generation.greedy", greedy)
    found = build(loaded, eval_examples=3, eval_batch_size=2).evaluate(loaded.module)
    assert [tuple(tokens.shape) for tokens in written] == [(2, NEW_TOKENS), (1, NEW_TOKENS)]
    assert found.n == 3 and torch.isfinite(torch.tensor(found.loss))
    score = build(loaded, score="f1").losses
    batch = build(loaded, score="f1").batch(0)
    assert score(loaded.module, batch).shape == (2,) and written[-1].shape == (2, NEW_TOKENS)


def test_every_question_is_of_seq_len_random_tokens_and_trains_with_a_gradient(loaded):
    task = build(loaded)
    batch = task.batch(0)
    assert batch.input_ids.shape == (2, 15)  # nothing is asked after the last token
    assert batch.attention_mask is None and batch.input_ids.min() >= 4
    assert not torch.equal(batch.input_ids[0], batch.input_ids[1])
    again = build(loaded).batch(0)
    assert torch.equal(again.input_ids, batch.input_ids)
    assert not torch.equal(build(loaded, seed=1).batch(0).input_ids, batch.input_ids)
    task.loss(loaded.module, batch).backward()
    assert any(p.grad is not None and p.grad.any() for p in loaded.module.parameters())
    loaded.module.zero_grad(set_to_none=True)


def test_what_leaves_no_room_and_what_writes_nothing_is_refused(loaded):
    longest = loaded.context - NEW_TOKENS
    for wrong in (8, longest + 1):
        with pytest.raises(UserError, match=f"needs seq_len from 9 to {longest}"):
            build(loaded, seq_len=wrong)
    with pytest.raises(UserError, match="demonstrations"):
        build(loaded, demonstrations=1)
    masked = models.load("roberta-tiny", dtype="float32", device="cpu", seed=0)
    with pytest.raises(UserError, match="is a masked language model"):
        build(masked)
