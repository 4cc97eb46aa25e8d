"""Built-in models: the catalogue tells the truth, and random weights are drawn as promised."""

import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from bench import models
from bench.models import catalogue
from bench.records import UserError

SHAPES = [name for name, entry in catalogue.read().items() if entry.config is not None]
TINY = ["opt-tiny", "llama-tiny", "roberta-tiny"]


def load(name, dtype="float32", seed=0):
    return models.load(name, dtype=dtype, device="cpu", seed=seed)


def weights(loaded):
    return list(loaded.module.parameters())


@pytest.mark.parametrize("name", SHAPES)
def test_catalogue_counts_the_parameters_of_the_shape(name):
    entry = catalogue.read()[name]
    loaded = models.load_shape(name, dtype="bfloat16", device="meta")
    assert loaded.facts.parameters == entry.parameters
    assert loaded.facts.parameter_bytes == 2 * entry.parameters
    assert (loaded.kind, loaded.facts.family) == (entry.kind, entry.family)


def test_catalogue_holds_what_the_suites_name():
    sizes = ["125m", "350m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b"]
    wanted = {f"opt-{size}" for size in sizes} | set(TINY) | {"smollm2-135m"}
    wanted |= {f"llama-{size}" for size in ["7b", "13b", "30b", "65b"]}
    assert wanted | {"roberta-base", "roberta-large"} <= set(models.names())
    assert all(title and "\n" not in title for title in models.names().values())


def test_opt_350m_is_built_like_the_odd_one_it_is():
    module = models.load_shape("opt-350m", dtype="float32", device="meta").module
    decoder = module.model.decoder
    assert decoder.final_layer_norm is None
    assert decoder.project_in.weight.shape == (1024, 512)
    assert not decoder.layers[0].do_layer_norm_before


def test_contexts_are_what_a_sequence_may_take():
    def context(name):
        return models.load_shape(name, dtype="float32", device="meta").context

    assert context("opt-125m") == context("llama-7b") == 2048
    assert context("roberta-base") == 512


def test_names_are_listed_without_torch():
    code = "import sys; from bench import models; models.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_one_seed_one_model_in_the_dtype_asked_for(name, dtype):
    first, again, other = load(name, dtype), load(name, dtype), load(name, dtype, seed=1)
    assert all(p.dtype == getattr(torch, dtype) for p in weights(first))
    assert all(map(torch.equal, weights(first), weights(again)))
    drawn = [p for p in weights(first) if p.float().std() > 0]
    assert len(drawn) > 10
    assert not any(
        torch.equal(a, b) for a, b in zip(weights(first), weights(other), strict=True) if a.std()
    )


@pytest.mark.parametrize("name", TINY)
def test_loading_leaves_the_global_random_stream_as_it_was(name):
    before = torch.get_rng_state()
    load(name, seed=5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", TINY)
def test_module_is_in_evaluation_mode_and_trainable(name):
    loaded = load(name)
    assert not any(m.training for m in loaded.module.modules())
    assert all(p.requires_grad and p.is_leaf for p in weights(loaded))
    assert loaded.facts.source == "random" and loaded.tokenizer is None


@pytest.mark.parametrize("name", TINY)
def test_random_weights_are_those_of_transformers_in_all_but_the_draw(name):
    """We build on meta and fill in; transformers builds in place. The rest must agree."""
    ours = load(name, "bfloat16").module
    auto = AutoModelForMaskedLM if name == "roberta-tiny" else AutoModelForCausalLM
    with torch.random.fork_rng():
        theirs = auto.from_config(ours.config, dtype=torch.bfloat16)
    buffers = dict(theirs.named_buffers())
    assert list(buffers) == [k for k, _ in ours.named_buffers()]
    for key, buffer in ours.named_buffers():
        assert buffer.dtype == buffers[key].dtype and torch.equal(buffer, buffers[key])
    pairs = zip(ours.named_parameters(), theirs.named_parameters(), strict=True)
    for (name, a), (other, b) in pairs:
        assert name == other
        within = 1e-4 + 0.02 * 5 / a.numel() ** 0.5  # five standard errors
        assert abs(a.float().mean() - b.float().mean()) < within
        assert abs(a.float().std() - b.float().std()) < within
    for model in (ours, theirs):  # nor is a tied head drawn over the embedding's padding row
        embedding = model.get_input_embeddings()
        assert not embedding.weight[embedding.padding_idx].any()
    tied = ours.get_output_embeddings().weight is ours.get_input_embeddings().weight
    assert tied == ours.config.tie_word_embeddings


@pytest.mark.parametrize("name", ["opt-66b", "llama-65b", "roberta-large"])
def test_shapes_are_built_on_fake_tensors(name):
    with FakeTensorMode():
        loaded = models.load_shape(name, dtype="float16", device="cpu")
    assert next(loaded.module.parameters()).device == torch.device("cpu")
    assert loaded.facts.parameters == catalogue.read()[name].parameters


def test_loading_says_nothing(capfd):
    load("opt-tiny")
    assert capfd.readouterr() == ("", "")


def test_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UserError, match=r"Unknown model 'opt-12m'\. Did you mean 'opt-125m'\?"):
        load("opt-12m")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_are_drawn_on_the_device_and_its_stream_is_left_as_it_was():
    before = torch.cuda.get_rng_state()
    one, two = (models.load("opt-tiny", dtype="float16", device="cuda", seed=3) for _ in "ab")
    assert all(p.is_cuda for p in weights(one)) and all(
        map(torch.equal, weights(one), weights(two))
    )
    assert torch.equal(before, torch.cuda.get_rng_state())
