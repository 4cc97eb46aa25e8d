"""Checkpoints: a local directory in the hub's format, and the hub with its refusals."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import huggingface_hub.errors as hub
import pytest
import torch
import transformers

from bench import models
from bench.records import UserError

TOKENIZER = Path(__file__).parent / "fixtures" / "tiny_tokenizer"


@pytest.fixture(params=["opt-tiny", "roberta-tiny"])
def saved(request, tmp_path):
    """A directory saved as users save theirs, with the model that was saved."""
    loaded = models.load(request.param, dtype="float32", device="cpu", seed=7)
    loaded.module.save_pretrained(tmp_path / "saved")
    shutil.copytree(TOKENIZER, tmp_path / "saved", dirs_exist_ok=True)
    return loaded, tmp_path / "saved"


def load(where, dtype="float32"):
    return models.load(str(where), dtype=dtype, device="cpu", seed=0)


def test_directory_gives_back_the_weights(saved, capfd):
    original, folder = saved
    models.prepare(str(folder))
    loaded = load(folder)
    assert loaded.kind == original.kind and loaded.context == original.context
    assert loaded.facts.parameters == original.facts.parameters
    assert loaded.facts.source == "local directory"
    state = loaded.module.state_dict()
    for key, value in original.module.state_dict().items():
        assert torch.equal(state[key], value)
    tied = loaded.module.get_output_embeddings().weight
    assert tied is loaded.module.get_input_embeddings().weight
    assert loaded.tokenizer("the film").input_ids and loaded.pad_id == 1
    assert capfd.readouterr() == ("", "")


def test_directory_is_loaded_in_the_dtype_asked_for_without_touching_the_random_stream(saved):
    before = torch.get_rng_state()
    loaded = load(saved[1], "bfloat16")
    assert {p.dtype for p in loaded.module.parameters()} == {torch.bfloat16}
    assert all(p.requires_grad for p in loaded.module.parameters())
    assert torch.equal(before, torch.get_rng_state())


_LOAD_UNDER_A_LIMIT = """
import sys
import torch
from bench import models
from bench.limits import MemoryLimit
models.load(sys.argv[1], dtype="float32", device="cpu", seed=0)  # loads the libraries
weights = int(sys.argv[3])
limit = MemoryLimit(weights + weights // 2)
loaded = models.load(sys.argv[2], dtype="float32", device="cpu", seed=0)
assert sum(p.nbytes for p in loaded.module.parameters()) == weights
assert limit.in_use_bytes() < weights + weights // 4
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA is Linux's")
def test_loading_counts_the_weights_once_against_a_memory_limit(saved, tmp_path):
    config = transformers.OPTConfig(
        hidden_size=512, word_embed_proj_dim=512, ffn_dim=2048, num_hidden_layers=16,
        num_attention_heads=8, vocab_size=1000, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.OPTForCausalLM(config)
    weights = sum(p.nbytes for p in model.parameters())
    model.save_pretrained(tmp_path / "large")
    done = subprocess.run(
        [sys.executable, "-c", _LOAD_UNDER_A_LIMIT, saved[1], tmp_path / "large", str(weights)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-800:]


def test_weights_lie_in_memory_of_their_own_not_in_the_file(saved):
    loaded = load(saved[1])
    assert all(p.data_ptr() % 64 == 0 for p in loaded.module.parameters())
    file = str(saved[1] / "model.safetensors")
    assert file not in Path("/proc/self/maps").read_text()


def test_shape_of_a_directory_needs_no_weights(saved):
    (saved[1] / "model.safetensors").unlink()
    loaded = models.load_shape(str(saved[1]), dtype="float32", device="meta")
    assert loaded.facts.parameters == saved[0].facts.parameters
    assert loaded.tokenizer is not None


def test_directory_without_weights_or_tokenizer_or_config(saved):
    folder = saved[1]
    for file in TOKENIZER.iterdir():
        (folder / file.name).unlink()
    assert load(folder).tokenizer is None
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="can't be loaded"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"holds no config\.json"):
        load(folder)


def test_checkpoint_without_its_head_is_refused_not_drawn_at_random(tmp_path):
    loaded = models.load("roberta-tiny", dtype="float32", device="cpu", seed=0)
    loaded.module.roberta.save_pretrained(tmp_path)
    config = loaded.module.config
    config.architectures = ["RobertaForMaskedLM"]
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks \d+ of the model's weights"):
        load(tmp_path)


def test_model_of_another_kind_is_refused(tmp_path):
    transformers.CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="neither a causal nor a masked"):
        load(tmp_path)


def test_hub_can_not_be_asked_when_offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for ask in (models.prepare, load):
        with pytest.raises(UserError, match=r"hub can't be reached.*local directory") as caught:
            ask("nobody/never-downloaded")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("error", "text"),
    [(hub.RepositoryNotFoundError, "is not on the hub"), (hub.GatedRepoError, "hf auth login")],
)
def test_refusals_of_the_hub_are_told_in_one_line(error, text, monkeypatch):
    def refuse(where, **_):
        # transformers raises OSError from the hub's own error.
        try:
            raise error.__new__(error)
        except error as cause:
            raise OSError(f"{where} can't be had\nand much more") from cause

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", refuse)
    with pytest.raises(UserError, match=text) as caught:
        load("some/model")
    assert "\n" not in str(caught.value)


def test_hub_names_are_loaded_from_the_hub_cache(saved, tmp_path, monkeypatch):
    """The hub's own cache, laid out as a download leaves it, and the hub out of reach."""
    original, folder = saved
    cached = tmp_path / "hub" / "models--some--model"
    shutil.copytree(folder, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    models.prepare("some/model")
    loaded = load("some/model")
    assert loaded.facts.source == "Hugging Face hub, some/model"
    pairs = zip(loaded.module.parameters(), original.module.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
