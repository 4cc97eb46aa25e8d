"""Answers that the model writes: what it writes, when it ends, and how it is scored."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from bench import models, tuning
from bench.records import RunSpec, UserError
from bench.tasks import squad
from bench.tasks.kit.forward import greedy
from bench.tasks.kit.generation import Generation
from bench.tasks.kit.text import text_task
from bench.tasks.kit.token_f1 import exact_match, normalised, token_f1
from bench.tasks.kit.values import Batch, Example, Examples, TaskFile

TOKENIZER = Path(__file__).parent / "fixtures" / "tiny_tokenizer"


@pytest.fixture(scope="module", params=["opt-tiny", "llama-tiny"])
def loaded(request):
    return reader(request.param)


def reader(name):
    model = models.load(name, dtype="float32", device="cpu", seed=0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.backend_tokenizer.post_processor = None  # no </s> at the end, as causal ones
    return replace(model, tokenizer=tokenizer)


def example(i, answers=("in the city",)):
    return Example(
        f"it was {'long and ' * i}dull", fields={"title": "F", "question": "what?"},
        answers=answers,
    )  # fmt: skip


EXAMPLES = Examples([example(i) for i in range(6)], [example(i) for i in range(5)], "ours")


def build(loaded, examples=EXAMPLES, **fields):
    given = {"seq_len": 64, "batch_size": 4, "steps": 1, "eval_examples": 5} | fields
    spec = RunSpec(method="mezo", model="any", task="squad", **given)
    file = TaskFile(squad.PROMPTS, squad.DEFAULT_PROMPT, squad.OBJECTIVES, ("text",))
    return text_task(spec, loaded, file, examples)


class Scripted(torch.nn.Module):
    """A model that writes given tokens, one after the other, whatever it reads."""

    def __init__(self, rows):
        super().__init__()
        self.rows, self.calls = rows, 0

    def forward(self, input_ids, attention_mask, position_ids, past_key_values=None, **_):
        at = past_key_values or 0
        self.calls += 1
        logits = torch.zeros(len(self.rows), 1, 512)
        for i, row in enumerate(self.rows):
            logits[i, 0, row[min(at, len(row) - 1)]] = 1.0
        return SimpleNamespace(logits=logits, past_key_values=at + 1)


# Scores, by hand


def test_normalisation_is_that_of_squad():
    assert normalised(" The  U.S. Army, an\tarmy ") == "us army army"
    assert normalised("theatre another") == "theatre another"  # articles as words alone
    assert normalised("a the an !?") == ""


@pytest.mark.parametrize(
    ("given", "answers", "f1"),
    [
        ("Paris", ["paris."], 1.0),
        ("in Paris", ["Paris"], 2 / 3),  # precision 1/2, recall 1
        ("the old city of Paris", ["city of light"], 4 / 7),  # 2 shared; 4 given, 3 right
        ("Paris Paris", ["Paris"], 2 / 3),  # a word counts as often as it is right
        ("Rome", ["Paris", "Rome or Milan"], 0.5),  # the best of all answers
        ("", ["Paris"], 0.0),
        ("the", ["a"], 1.0),  # nothing but articles on both sides
        ("London", ["Paris"], 0.0),
    ],
)
def test_token_f1_is_the_overlap_of_words(given, answers, f1):
    assert token_f1(given, answers) == pytest.approx(f1)


def test_exact_match_is_with_any_answer_after_normalisation():
    assert exact_match("The Paris!", ["Rome", "paris"])
    assert not exact_match("in Paris", ["Rome", "paris"])


# Writing


def plain_greedy(module, ids, n):
    """One sequence, the whole of it in every pass."""
    ids = list(ids)
    for _ in range(n):
        ids.append(int(module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-n:]


@pytest.mark.parametrize("tuned", ["full", "prefix", "prompt", "lora"])
@pytest.mark.parametrize("name", ["opt-tiny", "llama-tiny"])
def test_greedy_writes_padded_as_it_writes_alone_and_with_adapters(name, tuned):
    model = tuning.apply_(reader(name), tuned, {}, seed=3, real_ids=[list(range(9, 20))])
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(4)  # random weights as they come write one token for ever
        for parameter in model.module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    task = build(model)
    writer = task.evaluator.func.__self__
    batch = writer.collate((0, 3, 4))
    assert (batch.attention_mask == 0).any()
    with torch.inference_mode():
        together = greedy(model.module, batch, torch.tensor([]), 7)
        for row, i in zip(together.tolist(), (0, 3, 4), strict=True):
            assert row == plain_greedy(model.module, writer.rows[i].ids, 7)
    assert len(set(together.flatten().tolist())) > 2


def test_greedy_ends_when_every_row_has_met_a_stop_and_at_the_limit():
    batch = Batch((0, 1), torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, dtype=torch.int64))
    stop = torch.tensor([7, 8])
    model = Scripted([[1, 7, 1, 1], [1, 1, 1, 8, 1]])
    assert greedy(model, batch, stop, 50).tolist() == [[1, 7, 1, 1], [1, 1, 1, 8]]
    assert model.calls == 4
    assert greedy(Scripted([[1], [7]]), batch, stop, 5).shape == (2, 5)


def test_written_text_ends_at_the_line_or_at_the_end_of_text(loaded):
    task = build(loaded)
    writer = task.evaluator.func.__self__
    ids = loaded.tokenizer
    end = [ids.eos_token_id]
    city = ids(" in the city\nand more and more")["input_ids"]  # written on, for the other row
    good = ids(" it was good and long and dull and good")["input_ids"]
    scripted = Scripted([city, [*good, *end, 87]])
    written = writer.written(scripted, writer.collate((0, 1)))
    assert written == ["in the city", "it was good and long and dull and good"]
    assert city.index(*ids("\n")["input_ids"]) < len(good) - 1
    endless = Scripted([ids("x")["input_ids"]])
    assert writer.written(endless, writer.collate((0,))) == ["x" * 50]


def test_evaluation_scores_what_is_written_in_the_order_of_the_held_back_set(loaded):
    answers = [("good",), ("bad", "in the city"), ("the film was in the city",), ("dull",), ("x",)]
    heldback = [example(i, a) for i, a in enumerate(answers)]
    task = build(loaded, replace(EXAMPLES, heldback=heldback[::-1]), eval_batch_size=2)
    script = loaded.tokenizer(" in the city\n")["input_ids"]
    scripted = Scripted([script] * 5)
    writer = task.evaluator.func.__self__
    scores = 1 - writer.misses(scripted, writer.collate((0, 1, 2, 3, 4)))
    expected = [0, 0, 2 * 2 / 6, 1, 0]  # "in city" against "film was in city"
    assert scores.tolist() == pytest.approx(expected)

    result = task.evaluate(loaded.module)
    whole = build(loaded, replace(EXAMPLES, heldback=heldback[::-1]), eval_batch_size=5)
    assert result.n == len(result.scores) == 5 and result.predictions == []
    assert result.scores == whole.evaluate(loaded.module).scores
    teacher = task.collate.func
    with torch.inference_mode():
        losses = teacher.__self__.losses(loaded.module, teacher(writer.rows, (0, 1, 2, 3, 4)))
    assert result.loss == pytest.approx(losses.mean().item(), abs=1e-5)
    assert result.correct == sum(s == 1 for s in result.scores)


def test_scores_stand_in_the_order_of_the_held_back_set(loaded, monkeypatch):
    said = ["in the city", "city", "Rome", "the city", "in"]
    monkeypatch.setattr(
        Generation, "written", lambda self, module, batch: [said[i] for i in batch.examples]
    )
    mixed = [EXAMPLES.heldback[i] for i in (3, 0, 4, 1, 2)]  # of lengths in another order
    task = build(loaded, replace(EXAMPLES, heldback=mixed), eval_batch_size=2)
    result = task.evaluate(loaded.module)
    assert result.scores == pytest.approx([1, 2 / 3, 0, 2 / 3, 2 / 3])
    assert result.correct == 1


def test_f1_loss_is_one_minus_the_score_of_what_is_written(loaded):
    task = build(loaded, score="f1")
    assert not task.differentiable and build(loaded).differentiable
    batch = task.batch(0)
    script = loaded.tokenizer(" in the old city\n")["input_ids"]
    losses = task.losses(Scripted([script] * 4), batch)
    assert losses.dtype == torch.float32 and not losses.requires_grad
    assert losses.tolist() == pytest.approx([1 - 2 * 2 / 5] * 4)
    tiled = task.tiled(batch, 2)
    assert task.losses(Scripted([script] * 8), tiled).shape == (8,)
    assert task.loss(loaded.module, batch).shape == ()


# What is asked


def test_training_asks_for_the_tokens_of_the_first_answer_and_the_line_s_end(loaded):
    task = build(loaded, replace(EXAMPLES, train=[example(1, ("city", "town"))]))
    batch = task.batch(0)
    tokenizer = loaded.tokenizer
    assert tokenizer.decode(batch.answers[0]) == " city\n"
    asked = tokenizer.decode(batch.input_ids[0])
    assert asked == (
        "Title: F\nContext: it was long and dull\nQuestion: what?\nAnswer: city"
    )  # the newline is asked for, never given


def test_long_contexts_are_cut_and_the_prompt_and_the_answer_stay_whole(loaded):
    long = example(90)
    task = build(loaded, Examples([long], [long], "ours"), seq_len=60)
    row = task.collate.args[0][0]
    (whole, n), *_ = row.sequences
    text = loaded.tokenizer.decode(whole)
    assert 54 < len(whole) <= 60 and text.startswith("Title: F\nContext: it was long")
    assert text.endswith("\nQuestion: what?\nAnswer: in the city\n")
    assert loaded.tokenizer.decode(whole[-n:]) == " in the city\n"
    assert len(whole) - n < len(row.ids) <= 60  # alone, the question has the answer's room
    wide = build(loaded, Examples([long], [long], "ours"), seq_len=128)
    (asked,) = wide.evaluator.func.__self__.rows
    assert 70 < len(asked.ids) <= 128 - 50  # and room to write is left in the context
    with pytest.raises(UserError, match="leaves no room for text"):
        build(loaded, seq_len=20)


def test_facts_of_generation_have_no_classes(loaded):
    facts = build(loaded).facts
    assert (facts.labels, facts.eval_labels, facts.eval_n) == ([], [], 5)
    assert (facts.objective, facts.prompt) == ("answer", "lines")
    other = [example(i, ("another",)) for i in range(5)]
    assert facts.eval_digest != build(loaded, replace(EXAMPLES, heldback=other)).facts.eval_digest


def test_generation_with_what_it_has_not_is_refused(loaded):
    with pytest.raises(UserError, match=r"score = 'accuracy'.*Choose: cross_entropy, f1\."):
        build(loaded, score="accuracy")
    with pytest.raises(UserError, match="takes 50 in all"):
        build(replace(loaded, context=50), seq_len=50)
    masked = replace(
        models.load("roberta-tiny", dtype="float32", device="cpu", seed=0),
        tokenizer=loaded.tokenizer,
    )
    with pytest.raises(UserError, match=r"is a masked .* Choose a causal language model\."):
        build(masked)
