"""docs/adding.md does what it says: its files, put into a copy of the project, are parts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(?:python|toml)\n# (\S+)\n(.*?)^```", re.M | re.S)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A copy of the project with every file of the page in it."""
    copy = tmp_path_factory.mktemp("project")
    for name in ("zo_core", "bench", "reports", "suites", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", copy)
    for name, body in BLOCK.findall((ROOT / "docs" / "adding.md").read_text()):
        assert not (copy / name).exists()
        (copy / name).write_text(body)
    return copy


def python(project: Path, *arguments: object) -> str:
    env = {**os.environ, "PYTHONPATH": str(project)}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=project, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_parts_are_known(project):
    found = json.loads(python(project, "-m", "bench", "list", "--json"))
    assert found["methods"]["mezo_four_point"].startswith("MeZO, four points")
    assert "opt-micro" in found["models"]
    assert "weather" in found["tasks"]
    assert "added" in found["suites"]
    assert "page faults" in python(project, "-m", "bench", "doctor")


def test_the_method_passes_the_laws(project):
    laws = ["tests/zo_core/test_laws.py", "-k", "mezo_four_point", "-p", "no:cacheprovider"]
    out = python(project, "-m", "pytest", "-q", *laws)
    assert int(re.search(r"(\d+) passed", out)[1]) > 15


def test_the_model_and_the_tracker_pass_what_their_kind_is_held_to(project):
    tests = ["tests/bench/test_models.py", "tests/bench/test_trackers.py"]
    out = python(
        project, "-m", "pytest", "-q", *tests, "-k", "opt-micro or page_faults",
        "-p", "no:cacheprovider",
    )  # fmt: skip
    assert int(re.search(r"(\d+) passed", out)[1]) >= 2


def test_the_suite_runs_and_its_report_holds_the_plot_and_the_metric(project, tmp_path):
    python(project, "-m", "bench", "run", "added", "--out", tmp_path)
    python(project, "-m", "bench", "report", tmp_path / "added")
    records = [json.loads(p.read_text()) for p in tmp_path.rglob("record.json")]
    assert {r["spec"]["method"] for r in records} == {"mezo_four_point", "mezo"}
    for record in records:
        assert record["definitions"]["major_page_faults"]["unit"] == "1"
        assert any(m["metric"] == "major_page_faults" for m in record["measurements"])
    report = tmp_path / "added" / "report"
    assert list(report.rglob("*final_loss*.csv"))
    page = (report / "report.html").read_text()
    assert "Last training loss" in page and "major_page_faults" in page


def test_the_task_is_evaluated_by_a_real_model(project, tmp_path):
    """On a tokenizer and a model made here, in the format that a hub serves."""
    python(project, "-c", _MAKE, tmp_path / "model")
    (tmp_path / "s.toml").write_text(
        f'[run]\nmodel = "{tmp_path / "model"}"\ntask = "weather"\nmethod = "mezo"\nlr = 1e-4\n'
        "steps = 1\nbatch_size = 2\neval_examples = 4\nseq_len = 32\n"
    )
    python(project, "-m", "bench", "run", tmp_path / "s.toml", "--out", tmp_path / "r")
    (record,) = [json.loads(p.read_text()) for p in (tmp_path / "r").rglob("record.json")]
    assert record["status"] == "completed", record["reason"]
    assert [e["n"] for e in record["evaluations"]] == [4, 4]
    assert record["task"]["labels"] == [" bad", " good"] or record["task"]["labels"] == [
        "bad",
        "good",
    ]


_MAKE = """
import sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast
from bench.tasks.weather import PROMPTS, load_examples
texts = [e.text for e in load_examples().train] + [PROMPTS["today"].causal, " bad good"]
pre = pre_tokenizers.ByteLevel(add_prefix_space=False)
words = {w for t in texts for w, _ in pre.pre_tokenize_str(t)}
words |= set(pre_tokenizers.ByteLevel.alphabet())
vocabulary = {w: i for i, w in enumerate(["<unk>", "<pad>", *sorted(words)])}
tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
PreTrainedTokenizerFast(
    tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>"
).save_pretrained(sys.argv[1])
OPTForCausalLM(OPTConfig(
    vocab_size=len(vocabulary), hidden_size=32, ffn_dim=64, num_hidden_layers=1,
    num_attention_heads=2, max_position_embeddings=64, word_embed_proj_dim=32, pad_token_id=1,
)).save_pretrained(sys.argv[1])
"""
