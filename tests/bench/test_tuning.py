"""What is trained: counts, seeds, dtypes, and outputs as if virtual tokens were literal ones."""

import copy
import subprocess
import sys
from dataclasses import replace

import peft
import pytest
import torch
import transformers
from torch._subclasses.fake_tensor import FakeTensorMode

from bench import models, tuning
from bench.models.random_weights import build as build_random
from bench.models.random_weights import seeded
from bench.records import UserError
from bench.tasks.kit.forward import class_logits, greedy
from bench.tasks.kit.values import Batch
from zo_core import Params

LAYERS, HIDDEN, VOCABULARY = 2, 64, 512  # of the tiny models
MODELS = ["opt-tiny", "llama-tiny", "gqa-tiny", "roberta-tiny"]
CAUSAL = MODELS[:3]
ADAPTERS = ["lora", "prefix", "prompt"]
REAL = [[2, 17, 40, 8], [2, 99, 301, 250, 12, 77, 5]]  # token ids of "real text"
NORMS = {"opt-tiny": "*layer_norm*", "roberta-tiny": "*LayerNorm*, lm_head.layer_norm.*"}


def trained_names(module):
    return [name for name, p in module.named_parameters() if p.requires_grad]


def load(name, dtype="float32", seed=0):
    if name == "gqa-tiny":
        return grouped_queries(dtype, seed)
    return models.load(name, dtype=dtype, device="cpu", seed=seed)


def grouped_queries(dtype="float32", seed=0):
    """A LLaMA as SmolLM2: tied, and with fewer heads of keys and values (and wider ones)."""
    like = load("llama-tiny", dtype, seed)
    config = copy.deepcopy(like.module.config)
    config.num_key_value_heads, config.head_dim, config.tie_word_embeddings = 2, 24, True
    module = build_random(config, "causal", dtype=dtype, device="cpu", seed=seed)
    numbers = sum(p.numel() for p in module.parameters())
    facts = like.facts.model_copy(update={"name": "gqa-tiny", "parameters": numbers})
    return replace(like, module=module, facts=facts)


def apply_(model, name, seed=0, real_ids=REAL, dtype="float32", **options):
    loaded = load(model, dtype) if isinstance(model, str) else model
    if name == "layers" and not options:
        options = {"pattern": NORMS.get(model, "*norm*")}
    return tuning.apply_(loaded, name, options, seed=seed, real_ids=real_ids)


def suits(model, name):
    return not (name == "bias" and model in ("llama-tiny", "gqa-tiny"))


def pairs(names=None):
    return [(m, t) for m in MODELS for t in names or tuning.names() if suits(m, t)]


def moved(loaded):
    """Move what is trained, so that an adapter that starts as nothing does something."""
    with torch.no_grad(), seeded(9, "cpu"):
        for p in loaded.module.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p), alpha=0.05)
    return loaded


def tokens(rows=2, length=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, VOCABULARY, (rows, length), generator=generator)


def padded(loaded, rows):
    """A batch of rows of different lengths, as tasks collate it, and each row as its own batch."""
    longest, causal = max(map(len, rows)), loaded.kind == "causal"

    def fill(filler, content):
        pads = [[filler] * (longest - len(c)) for c in content]
        return torch.tensor(
            [[*p, *c] if causal else [*c, *p] for p, c in zip(pads, content, strict=True)]
        )

    answers = torch.tensor([len(r) - 2 for r in rows])
    candidates = torch.tensor([5, 6, 7])
    together = Batch(
        examples=tuple(range(len(rows))),
        input_ids=fill(loaded.pad_id, rows),
        targets=torch.zeros(len(rows), dtype=torch.int64),
        attention_mask=fill(0, [[1] * len(r) for r in rows]),
        position_ids=fill(0, [list(range(len(r))) for r in rows]) if causal else None,
        answer_at=None if causal else answers,
        candidates=candidates,
    )
    alone = [
        Batch(
            examples=(i,),
            input_ids=torch.tensor([row]),
            targets=torch.zeros(1, dtype=torch.int64),
            answer_at=None if causal else answers[i : i + 1],
            candidates=candidates,
        )
        for i, row in enumerate(rows)
    ]
    return together, alone


# ---------------------------------------------------------------------------------- the register


def test_names_are_listed_without_torch_and_full_without_peft():
    code = "import sys; from bench import tuning; tuning.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = (
        "import sys; from bench import models, tuning\n"
        "loaded = models.load('opt-tiny', dtype='float32', device='cpu', seed=0)\n"
        "tuning.apply_(loaded, 'full', {}, seed=0); sys.exit('peft' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert {"full", "head", "bias", "layers", *ADAPTERS} == set(tuning.names())
    assert all(title and "\n" not in title for title in tuning.names().values())


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("loar", {}, "Unknown tuning 'loar'. Did you mean 'lora'?"),
        ("lora", {"rank": 8}, "Unknown option of tuning 'lora': 'rank'."),
        ("lora", {"aplha": 8}, "Did you mean 'alpha'?"),
        ("lora", {"r": 8.0}, "Option 'r' of tuning 'lora' must be a int"),
        ("lora", {"r": 0}, "Option 'r' must be 1 or more, got 0."),
        ("lora", {"alpha": -1}, "Option 'alpha' must be a positive number, got -1."),
        ("lora", {"targets": " , "}, "Option 'targets' is empty"),
        ("prefix", {"tokens": 0}, "Option 'tokens' must be 1 or more, got 0."),
        ("layers", {}, "Tuning 'layers' needs the option 'pattern'"),
        ("full", {"r": 1}, "Unknown option of tuning 'full': 'r'."),
    ],
)
def test_wrong_options_are_refused_in_one_line_before_there_is_a_model(name, options, message):
    with pytest.raises(UserError) as error:
        tuning.build(name, options)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "name", "options", "message"),
    [
        ("llama-tiny", "bias", {}, "Model 'llama-tiny' has no bias terms to train."),
        ("opt-tiny", "lora", {"targets": "q_prj"}, "'q_prj' matches no linear layer of model"),
        ("opt-tiny", "lora", {"targets": "q_prj"}, "Did you mean 'q_proj'?"),
        ("opt-tiny", "lora", {"targets": "q_proj, embed_tokens"}, "'embed_tokens' matches no"),
        ("opt-tiny", "layers", {"pattern": "q_proj"}, "'q_proj' matches no tensor of model"),
        ("opt-tiny", "prefix", {"tokens": 128}, "tokens = 128 leaves no room for text"),
        ("opt-tiny", "prompt", {"tokens": 200}, "takes 128 tokens in all. Lower tokens."),
    ],
)
def test_tuning_that_does_not_suit_the_model_says_so_in_one_line(model, name, options, message):
    with pytest.raises(UserError) as error:
        apply_(model, name, **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_model_without_keys_and_values_or_without_a_head_is_refused():
    config = transformers.DistilBertConfig(vocab_size=VOCABULARY, dim=64, n_layers=1, n_heads=4)
    like = load("roberta-tiny")
    body = replace(like, module=transformers.DistilBertModel(config).eval())
    with pytest.raises(UserError, match="'prefix' does not suit model 'roberta-tiny'"):
        apply_(body, "prefix")
    with pytest.raises(UserError, match="'roberta-tiny' has no output head to train"):
        apply_(body, "head")
    assert apply_(body, "lora").facts.trained_parameters == 8 * (64 + 64) * 2


# ------------------------------------------------------------------------------ what is trained


def expected(model, name):
    """How many numbers each tuning trains, from its paper's formula and the shapes."""
    kv = {"gqa-tiny": 2 * 24}.get(model, HIDDEN)  # width of all keys of one token
    query = {"gqa-tiny": 4 * 24}.get(model, HIDDEN)
    return {
        "lora": LAYERS * (8 * (HIDDEN + query) + 8 * (HIDDEN + kv)),
        "prefix": 5 * LAYERS * 2 * kv,
        "prompt": 10 * HIDDEN,
        # RoBERTa's head: dense and its bias, layer norm, projection and its bias.
        "head": HIDDEN * VOCABULARY
        + (HIDDEN * HIDDEN + 3 * HIDDEN + VOCABULARY) * (model == "roberta-tiny"),
        "bias": {
            # a layer: q, k, v, out, two norms, fc2 of 64, fc1 of 256; the last norm
            "opt-tiny": LAYERS * (7 * HIDDEN + 256) + HIDDEN,
            # the same a layer; embedding's norm; dense, norm and projection of the head
            "roberta-tiny": LAYERS * (7 * HIDDEN + 256) + 3 * HIDDEN + VOCABULARY,
        }.get(model),
        # two norms a layer, and one; LLaMA's have no bias; RoBERTa's head has one more
        "layers": {"opt-tiny": 10, "roberta-tiny": 12}.get(model, 5) * HIDDEN,
        "full": load(model).facts.parameters,
    }[name]


@pytest.mark.parametrize(("model", "name"), pairs())
def test_trained_numbers_are_as_many_as_the_formula_says(model, name):
    base, tuned = load(model), apply_(model, name)
    assert tuned.facts.trained_parameters == expected(model, name)
    assert Params.of(tuned.module).elements == expected(model, name)
    named = dict(tuned.module.named_parameters())
    assert sum(named[n].numel() for n in trained_names(tuned.module)) == expected(model, name)
    assert tuned.facts.parameters == sum(p.numel() for p in named.values())
    assert tuned.facts.parameter_bytes == 4 * tuned.facts.parameters
    added = expected(model, name) if name in ADAPTERS else 0
    if name == "head" and model != "llama-tiny":
        added = HIDDEN * VOCABULARY  # untied
    assert tuned.facts.parameters == base.facts.parameters + added
    kept = {"name", "family", "source", "note"}
    assert tuned.facts.model_dump(include=kept) == base.facts.model_dump(include=kept)
    virtual = {"prefix": 5, "prompt": 10}.get(name, 0)
    assert tuned.context == base.context - virtual
    assert not any(m.training for m in tuned.module.modules())


@pytest.mark.parametrize(("model", "name"), pairs())
def test_gradients_reach_all_that_is_trained_and_nothing_else(model, name):
    tuned = moved(apply_(model, name))
    tuned.module(input_ids=tokens()).logits.square().sum().backward()
    for parameter_name, p in tuned.module.named_parameters():
        if p.requires_grad:
            assert p.grad is not None, parameter_name
            # A bias of keys moves all scores of a query alike: its gradient is rounding.
            assert p.grad.any() or parameter_name.endswith(("k_proj.bias", "key.bias"))
        else:
            assert p.grad is None


@pytest.mark.parametrize(("model", "name"), pairs())
def test_trained_tensors_are_used_by_the_module_that_owns_them(model, name):
    """The engine perturbs a module's own tensors while it runs; that must be all of it."""
    tuned = moved(apply_(model, name))
    ids = tokens()
    before = tuned.module(input_ids=ids).logits
    other = moved(copy.deepcopy(tuned))
    wanted = other.module(input_ids=ids).logits
    assert not torch.allclose(before, wanted, atol=1e-3)
    theta = {id(p): p.detach().clone() for p in tuned.module.parameters()}
    there = {
        id(p): q.detach()
        for p, q in zip(tuned.module.parameters(), other.module.parameters(), strict=True)
    }

    def put(values):
        def hook(module, *_):
            for p in module._parameters.values():
                if p is not None and p.requires_grad:
                    p.data.copy_(values[id(p)])

        return hook

    # Tensors of a module around another of the same tensor (RoBERTa's tied bias) are put twice.
    for module in tuned.module.modules():
        module.register_forward_pre_hook(put(there))
        module.register_forward_hook(put(theta))
    seen = tuned.module(input_ids=ids).logits
    torch.testing.assert_close(seen, wanted)
    assert all(torch.equal(p, theta[id(p)]) for p in tuned.module.parameters())


def test_one_seed_one_adapter_and_the_global_stream_stays_as_it_was():
    for name in ADAPTERS:
        before = torch.get_rng_state()
        one, again, other = (apply_("opt-tiny", name, seed=s, real_ids=()) for s in (3, 3, 4))
        assert torch.equal(before, torch.get_rng_state())
        of = [Params.of(x.module).tensors for x in (one, again, other)]
        assert all(map(torch.equal, of[0], of[1]))
        assert not all(map(torch.equal, of[0], of[2]))
        torch.rand(1)  # nor does the state of that stream decide anything


@pytest.mark.parametrize(("model", "name"), pairs([*ADAPTERS, "head"]))
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_adapters_are_in_the_dtype_of_the_weights(model, name, dtype):
    tuned = moved(apply_(model, name, dtype=dtype))
    kinds = {p.dtype for p in tuned.module.parameters()}
    assert kinds == {getattr(torch, dtype)}
    together, _ = padded(tuned, [[2, 5, 9], [2, 5, 9, 11, 12]])
    logits = class_logits(tuned.module, tuned.kind, together)
    assert logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad.dtype == p.dtype for p in Params.of(tuned.module).tensors)


@pytest.mark.parametrize("model", ["opt-tiny", "llama-tiny", "roberta-tiny"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_shapes_are_tuned_without_weights(model, name):
    like = apply_(model, name)
    meta = models.load_shape(model, dtype="float32", device="meta")
    meta = tuning.apply_(meta, name, {}, seed=0)
    assert all(p.is_meta for p in meta.module.parameters())
    with FakeTensorMode():
        fake = models.load_shape(model, dtype="float32", device="cpu")
        fake = tuning.apply_(fake, name, {}, seed=0)
        logits = fake.module(input_ids=torch.zeros(1, 6, dtype=torch.int64)).logits
        assert logits.shape == (1, 6, VOCABULARY)
    assert meta.facts == fake.facts == like.facts
    assert trained_names(fake.module) == trained_names(like.module)


# ------------------------------------------------------------------- the same as something else


@pytest.mark.parametrize(("model", "name"), pairs())
def test_row_in_a_padded_batch_gives_the_same_logits_as_alone(model, name):
    tuned = moved(apply_(model, name))
    rows = [[2, 5, 9], [2, 8, 30, 31, 32, 33, 40], [2, 100, 101, 102, 103]]
    together, alone = padded(tuned, rows)
    with torch.no_grad():
        seen = class_logits(tuned.module, tuned.kind, together)
        single = torch.cat([class_logits(tuned.module, tuned.kind, b) for b in alone])
    assert seen.shape == (3, 3)
    torch.testing.assert_close(seen, single, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["prefix", "prompt"])
@pytest.mark.parametrize("model", CAUSAL)
def test_virtual_tokens_that_start_from_real_ones_are_those_tokens(model, name):
    tuned, plain = apply_(model, name, tokens=6), load(model)
    first = torch.tensor([i for row in REAL for i in row][:6])
    ids = tokens()
    literal = torch.cat((first.expand(2, -1), ids), 1)
    with torch.no_grad():
        seen = tuned.module(input_ids=ids, use_cache=False).logits
        wanted = plain.module(input_ids=literal, use_cache=False).logits[:, 6:]
        assert seen.shape == (2, 6, VOCABULARY)
        torch.testing.assert_close(seen, wanted, atol=1e-5, rtol=1e-4)
        last = tuned.module(input_ids=ids, use_cache=False, logits_to_keep=1).logits
    torch.testing.assert_close(last, wanted[:, -1:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_virtual_tokens_of_a_masked_model_are_real_tokens_of_one_layer(name):
    """In one layer keys and values hang on their own token alone, though all see all."""
    like = load("roberta-tiny")
    like.module.roberta.encoder.layer = like.module.roberta.encoder.layer[:1]
    plain = copy.deepcopy(like)
    tuned = apply_(like, name, tokens=6)
    first = torch.tensor([i for row in REAL for i in row][:6])
    ids = tokens()
    literal = torch.cat((first.expand(2, -1), ids), 1)
    with torch.no_grad():
        seen = tuned.module(input_ids=ids).logits
        wanted = plain.module(input_ids=literal).logits[:, 6:]
        hidden = tuned.module.base_model(input_ids=ids)[0]
    torch.testing.assert_close(seen, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tuned.module.lm_head(hidden), seen)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # in peft
@pytest.mark.parametrize("model", MODELS)
def test_lora_is_the_lora_of_peft(model):
    tuned = moved(apply_(model, "lora", r=4, alpha=12))
    names = ["query", "value"] if model == "roberta-tiny" else ["q_proj", "v_proj"]
    config = peft.LoraConfig(r=4, lora_alpha=12, target_modules=names)
    with torch.random.fork_rng():
        theirs = peft.get_peft_model(load(model).module, config).eval()
    same = {f"base_model.model.{n}": p for n, p in tuned.module.named_parameters()}
    wanted = {n for n, p in theirs.named_parameters() if p.requires_grad}
    assert wanted == {n for n, p in same.items() if p.requires_grad}
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.copy_(same[name])
    ids = tokens()
    ours, others = tuned.module(input_ids=ids).logits, theirs(input_ids=ids).logits
    assert torch.equal(ours, others)
    ours.square().sum().backward()
    others.square().sum().backward()
    for name, p in theirs.named_parameters():
        if p.requires_grad:
            assert p.grad.any() and torch.equal(p.grad, same[name].grad)


def test_lora_starts_as_peft_says_with_a_random_factor_and_a_zero_one():
    tuned = apply_("opt-tiny", "lora", r=16)
    named = dict(tuned.module.named_parameters())
    a = torch.cat([named[n].flatten() for n in named if "lora_A" in n])
    bound = 1 / HIDDEN**0.5  # kaiming with a = sqrt(5), as of nn.Linear
    assert 0.95 * bound < a.abs().max() <= bound and abs(a.std() - bound / 3**0.5) < 0.05 * bound
    assert len(a.unique()) > 0.95 * len(a)
    assert not any(named[n].any() for n in named if "lora_B" in n)
    ids = tokens()
    assert torch.equal(
        tuned.module(input_ids=ids).logits, load("opt-tiny").module(input_ids=ids).logits
    )


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # in peft
@pytest.mark.parametrize("model", CAUSAL[:2])
@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_virtual_tokens_are_those_of_peft(model, name):
    tuned = moved(apply_(model, name))
    config = {
        "prefix": peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
        "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=10),
    }[name]
    with torch.random.fork_rng():
        theirs = peft.get_peft_model(load(model).module, config).eval()
    (own,) = Params.of(tuned.module).tensors
    (other,) = (p for p in theirs.parameters() if p.requires_grad)
    with torch.no_grad():
        other.copy_(own)
    ids = tokens()
    seen = tuned.module(input_ids=ids).logits
    wanted = theirs(input_ids=ids).logits[:, -6:]
    torch.testing.assert_close(seen, wanted)
    seen.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(own.grad, other.grad)


@pytest.mark.parametrize(("model", "name"), [p for p in pairs(ADAPTERS) if p[0] in CAUSAL])
def test_greedy_generation_with_a_cache_is_that_of_whole_forward_passes(model, name):
    tuned, length = moved(apply_(model, name)), 6
    together, _ = padded(tuned, [[2, 5, 9], [2, 8, 30, 31, 32]])
    stop = torch.tensor([VOCABULARY])  # never
    with torch.no_grad():
        ours = greedy(tuned.module, together, stop, length)
    ids, mask = together.input_ids, together.attention_mask
    theirs = tuned.module.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=length, do_sample=False, eos_token_id=-1
    )
    with torch.no_grad():
        for _ in range(length):
            places = (mask.cumsum(1) - 1).clamp(min=0)
            logits = tuned.module(input_ids=ids, attention_mask=mask, position_ids=places).logits
            ids = torch.cat((ids, logits[:, -1:].argmax(2)), 1)
            mask = torch.cat((mask, mask.new_ones(2, 1)), 1)
    assert torch.equal(ours, ids[:, -length:])
    assert torch.equal(theirs, ids)


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_embeddings_may_be_given_in_place_of_ids_and_after_a_cache(name):
    module = moved(apply_("opt-tiny", name)).module
    ids = tokens(length=6)
    words = module.get_input_embeddings()(ids)
    with torch.no_grad():
        wanted = module(input_ids=ids).logits
        assert torch.equal(module(inputs_embeds=words).logits, wanted)
        begun = module(inputs_embeds=words[:, :4], use_cache=True)
        rest = module(inputs_embeds=words[:, 4:], past_key_values=begun.past_key_values)
    torch.testing.assert_close(rest.logits, wanted[:, 4:])


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_pooler_of_an_encoder_sees_the_first_real_token(name):
    shape = {"hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.BertConfig(vocab_size=VOCABULARY, num_hidden_layers=1, **shape)
    with torch.random.fork_rng():
        plain = transformers.BertModel(config).eval()
    like = replace(load("roberta-tiny"), module=copy.deepcopy(plain))
    tuned, ids = apply_(like, name, tokens=6), tokens()
    first = torch.tensor([i for row in REAL for i in row][:6])
    with torch.no_grad():
        seen = tuned.module(input_ids=ids)
        literal = plain(input_ids=torch.cat((first.expand(2, -1), ids), 1))[0][:, 6:]
        pooled = plain.pooler(literal)
    torch.testing.assert_close(seen.last_hidden_state, literal, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen.pooler_output, pooled, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["prefix", "prompt"])
def test_copy_of_a_tuned_model_has_virtual_tokens_of_its_own(name):
    tuned = apply_("opt-tiny", name)
    ids = tokens()
    before = tuned.module(input_ids=ids).logits
    twin = moved(copy.deepcopy(tuned))
    assert not torch.allclose(twin.module(input_ids=ids).logits, before, atol=1e-3)
    assert torch.equal(tuned.module(input_ids=ids).logits, before)


def test_padding_without_position_ids_is_not_counted_by_a_prompt():
    tuned = moved(apply_("roberta-tiny", "prompt"))
    row = [2, 8, 30, 31, 32]
    left = torch.tensor([[1, 1, *row]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    alone = tuned.module(input_ids=torch.tensor([row])).logits
    seen = tuned.module(input_ids=left, attention_mask=mask).logits[:, 2:]
    torch.testing.assert_close(seen, alone, atol=1e-5, rtol=1e-4)


def test_prefix_refuses_activation_checkpointing_which_would_drop_it():
    tuned = apply_("opt-tiny", "prefix")
    tuned.module.activation_checkpointing_enable()
    tuned.module.train()
    with pytest.raises(UserError, match="does not work with activation checkpointing"):
        tuned.module(input_ids=tokens())


# ----------------------------------------------------------------------------------------- heads


@pytest.mark.parametrize("model", ["opt-tiny", "gqa-tiny", "roberta-tiny"])
def test_tied_head_is_untied_first_and_computes_the_same(model):
    plain, tuned = load(model), apply_(model, "head")
    embedding = tuned.module.get_input_embeddings().weight
    projection = tuned.module.get_output_embeddings().weight
    assert projection is not embedding and torch.equal(projection, embedding)
    assert projection.requires_grad and not embedding.requires_grad
    tuned.module.tie_weights()
    assert tuned.module.get_output_embeddings().weight is projection
    ids = tokens()
    assert torch.equal(tuned.module(input_ids=ids).logits, plain.module(input_ids=ids).logits)
    still = apply_(model, "head", untie=False)
    assert still.module.get_input_embeddings().weight.requires_grad
    assert still.facts.parameters == plain.facts.parameters


def classifier(model):
    if model == "llama-tiny":  # our own head on any model; the others are those of transformers
        ours = models.load(model, dtype="float32", device="cpu", seed=0, head_classes=3)
        return ours, HIDDEN * 3 + 3, "head."
    like = load(model)
    config = copy.deepcopy(like.module.config)
    config.num_labels = 3
    module = transformers.AutoModelForSequenceClassification.from_config(config)
    if model == "opt-tiny":
        return replace(like, module=module.eval()), HIDDEN * 3, "score."
    return replace(like, module=module.eval()), HIDDEN * HIDDEN + HIDDEN * 4 + 3, "classifier."


@pytest.mark.parametrize("model", ["opt-tiny", "llama-tiny", "roberta-tiny"])
@pytest.mark.parametrize("name", ["head", *ADAPTERS])
def test_new_classification_head_is_trained_beside_the_adapter(model, name):
    with torch.random.fork_rng():
        loaded, size, prefix = classifier(model)
    tuned = apply_(loaded, name)
    names = trained_names(tuned.module)
    own = expected(model, name) if name in ADAPTERS else 0
    assert tuned.facts.trained_parameters == own + size
    assert any(n.startswith(prefix) for n in names)
    assert all(n.startswith(prefix) for n in names) == (name == "head")
    assert tuned.module(input_ids=tokens()).logits.shape == (2, 3)


def test_layers_by_pattern_are_those_and_no_others():
    tuned = apply_("opt-tiny", "layers", pattern="layers.1.fc?.weight, lm_head.weight")
    assert trained_names(tuned.module) == [
        "model.decoder.embed_tokens.weight",  # the tied head's first name
        "model.decoder.layers.1.fc1.weight",
        "model.decoder.layers.1.fc2.weight",
    ]


def test_bias_tuning_trains_a_new_head_whole():
    with torch.random.fork_rng():
        loaded, size, _ = classifier("opt-tiny")  # of weights alone
    tuned = apply_(loaded, "bias")
    assert tuned.facts.trained_parameters == expected("opt-tiny", "bias") + size
    assert "score.weight" in trained_names(tuned.module)
