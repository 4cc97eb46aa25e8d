"""From texts to tokens: nothing of the prompt is ever lost, and label words are checked."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from bench import models
from bench.records import RunSpec, UserError
from bench.tasks import mr
from bench.tasks.kit.objective import CLASSIFICATION
from bench.tasks.kit.text import text_task
from bench.tasks.kit.values import Example, Examples, Prompt, TaskFile

TOKENIZER = Path(__file__).parent / "fixtures" / "tiny_tokenizer"
TEXTS = ["the film was good", "bad", "it was long and dull " * 30, "x" * 300, ""]
EXAMPLES = Examples([Example(t, i % 2) for i, t in enumerate(TEXTS)], [Example("good", 1)], "ours")


def reader(name):
    """A tiny model that reads: OPT with its leading </s>, RoBERTa with <s> and </s>."""
    loaded = models.load(name, dtype="float32", device="cpu", seed=0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    if loaded.kind == "causal":
        begin = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
        tokenizer.backend_tokenizer.post_processor = begin
    return replace(loaded, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def opt():
    return reader("opt-tiny")


@pytest.fixture(scope="module")
def roberta():
    return reader("roberta-tiny")


def build(loaded, prompts=mr.PROMPTS, **fields):
    given = {"seq_len": 24, "batch_size": 8, "steps": 1, "eval_examples": 1} | fields
    spec = RunSpec(method="mezo", model="any", task="mr", **given)
    return text_task(spec, loaded, file(prompts), EXAMPLES)


def file(prompts=mr.PROMPTS):
    return TaskFile(prompts, "it_was", CLASSIFICATION, ("text",))


def rows(task):
    return task.collate.args[0]


@pytest.mark.parametrize("prompt", list(mr.PROMPTS))
def test_causal_prompts_end_where_the_answer_begins(opt, prompt):
    task = build(opt, prompt=prompt)
    end = {"it_was": " It was", "sentiment": "Sentiment:"}[prompt]
    for row in rows(task):
        assert len(row.ids) <= 24 and row.answer_at == len(row.ids) - 1
        assert row.ids[0] == 2  # </s>, as OPT's tokenizer adds
        assert opt.tokenizer.decode(row.ids).endswith(end)
    assert opt.tokenizer.decode(list(task.evaluator.args[0].candidates)) == "".join(
        mr.PROMPTS[prompt].words
    )


@pytest.mark.parametrize("prompt", list(mr.PROMPTS))
def test_masked_prompts_keep_their_mask_and_their_end(roberta, prompt):
    task = build(roberta, prompt=prompt)
    for row in rows(task):
        assert len(row.ids) <= 24 and (row.ids[0], row.ids[-1]) == (0, 2)
        assert row.ids[row.answer_at] == roberta.tokenizer.mask_token_id
        assert list(row.ids).count(roberta.tokenizer.mask_token_id) == 1


def test_text_is_cut_between_words_and_only_where_it_must_be(opt):
    task = build(opt)
    short, _, long, one_word, nothing = (opt.tokenizer.decode(r.ids[1:]) for r in rows(task))
    assert short == "the film was good It was"
    kept = long.removesuffix(" It was")
    assert TEXTS[2].startswith(kept + " ") and len(kept) > 20
    assert one_word.startswith("xx") and one_word.endswith(" It was")
    assert nothing == " It was"


def test_text_that_looks_like_the_mask_is_not_the_mask(roberta):
    examples = Examples([Example("a <mask> film {text} </s>", 0)], [], "ours")
    spec = RunSpec(method="mezo", model="any", task="mr", steps=1, seq_len=40)
    row = rows(text_task(spec, roberta, file(), examples))[0]
    assert list(row.ids).count(roberta.tokenizer.mask_token_id) == 1


def test_causal_batches_are_padded_on_the_left_with_positions(opt):
    batch = build(opt).batch(0)
    assert (batch.input_ids[:, -1] != opt.pad_id).all()
    for mask, positions in zip(batch.attention_mask, batch.position_ids, strict=True):
        n = int(mask.sum())
        assert mask.tolist() == [0] * (len(mask) - n) + [1] * n
        assert positions[-n:].tolist() == list(range(n))
    assert batch.answer_at is None


def test_masked_batches_are_padded_on_the_right(roberta):
    batch = build(roberta).batch(0)
    rows = torch.arange(len(batch.examples))
    assert (batch.input_ids[rows, batch.answer_at] == roberta.tokenizer.mask_token_id).all()
    assert (batch.attention_mask[:, 0] == 1).all() and batch.position_ids is None
    assert (batch.input_ids[batch.attention_mask == 0] == roberta.pad_id).all()


@pytest.mark.parametrize("which", ["opt", "roberta"])
def test_padding_changes_no_prediction(which, request):
    loaded = request.getfixturevalue(which)
    task = build(loaded)
    batch = task.batch(0)
    with torch.inference_mode():
        together = task.loss(loaded.module, batch).item()
        single = [task.loss(loaded.module, task.collate((i,))) for i in batch.examples]
    assert together == pytest.approx(sum(s.item() for s in single) / len(single), abs=1e-5)


def test_facts_tell_what_was_asked(opt):
    facts = build(opt, prompt="sentiment", train_examples=3, eval_examples=9).facts
    assert (facts.train_n, facts.eval_n, facts.eval_labels) == (3, 1, [1])
    assert (facts.prompt, facts.labels) == ("sentiment", ["negative", "positive"])
    assert len(facts.eval_digest) == 16 and facts.source == "ours"


def test_wrong_label_words_are_named(opt, roberta):
    for loaded in (opt, roberta):
        long = {"it_was": replace(mr.PROMPTS["it_was"], words=(" great", " unfathomable"))}
        with pytest.raises(UserError, match="Label word ' unfathomable' is not one token"):
            build(loaded, long)
        same = {"it_was": replace(mr.PROMPTS["it_was"], words=(" great", " great"))}
        with pytest.raises(UserError, match="label words with the same token"):
            build(loaded, same)


def test_prompts_that_do_not_suit_are_refused(opt, roberta):
    with pytest.raises(UserError, match=r"Unknown prompt of task 'mr' 'it_is'.*'it_was'"):
        build(opt, prompt="it_is")
    with pytest.raises(UserError, match="has no form for masked"):
        build(roberta, {"it_was": Prompt("{text} It was", (" bad", " good"))})
    with pytest.raises(UserError, match=r"seq_len = 3 leaves no room for text.* takes 3 tokens"):
        build(opt, seq_len=3)
    with pytest.raises(UserError, match="longer than model 'opt-tiny' can take"):
        build(opt, seq_len=129)
    with pytest.raises(UserError, match=r"random weights and no tokenizer.*random_tokens"):
        build(replace(opt, tokenizer=None))
