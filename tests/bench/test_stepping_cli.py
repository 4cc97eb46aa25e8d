"""``zometer bench step`` as a user meets it: tokens, tables, records, mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.records import UserError
from bench.records.step_speed import read_step_speeds
from bench.stepping import cases

ROOT = Path(__file__).parents[2]
QUICK = ["--model", "opt-tiny", "--shape", "2x8", "--rounds", "1", "--textbook-rounds", "1"]


def zometer(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", "bench", "step", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


def test_a_case_prints_a_table_and_leaves_a_record(tmp_path: Path):
    out = tmp_path / "out"
    done = zometer(
        *QUICK, "--method", "mezo:distribution=rademacher", "--threads", 1, "--out", out
    )
    assert done.returncode == 0, done.stderr
    for word in ("opt-tiny float32 2x8", "textbook", "rademacher", "mul_(1.0)", "limit", "GB/s"):
        assert word in done.stdout, word
    (record,) = read_step_speeds(out)
    assert [s.token for s in record.steps] == ["textbook", "mezo:distribution=rademacher"]
    assert record.case.threads == record.environment.threads == 1
    assert f"{record.key}/step_speed.json" in done.stdout


def test_json_is_one_line_a_case_with_samples_and_what_is_derived(tmp_path: Path):
    done = zometer(*QUICK, "--dtype", "float32", "--dtype", "bfloat16", "--no-noise", "--no-peaks",
                   "--json", "--out", tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert (first["case"]["dtype"], second["case"]["dtype"]) == ("float32", "bfloat16")
    told = {one["step"]: one for one in first["summary"]}
    sample = first["steps"][1]["samples"][0]
    assert told["mezo"]["ratio"]["median"] == sample["seconds"] / (2 * sample["forward_seconds"])
    assert told["mezo"]["limit"] is None and told["mezo"]["extra_peak_bytes"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": ["mezzo"]}, "Unknown method 'mezzo'. Did you mean 'mezo'?"),
        ({"tokens": ["mezo:epps=1"]}, "Did you mean 'eps'?"),
        ({"tokens": ["mezo:eps"]}, "'eps' has no value"),
        ({"tokens": ["mezo:eps=fast"]}, "must be a float"),
        ({"tokens": ["textbook"]}, "--textbook-rounds"),
        ({"models": ["opt-tinny"]}, "Did you mean 'opt-tiny'?"),
        ({"dtypes": ["bfloat"]}, "Did you mean 'bfloat16'?"),
        ({"shapes": ["8by64"]}, "Expected --shape BATCHxTOKENS such as 8x64, got '8by64'"),
        ({"shapes": ["0x64"]}, "Expected --shape"),
        ({"task": "random_token"}, "Did you mean 'random_tokens'?"),
        ({"device": "gpu"}, "Expected --device cpu, cuda or cuda:N, got 'gpu'"),
    ],
)
def test_a_mistake_names_what_was_meant(changes: dict[str, Any], message: str):
    given = {"models": ["opt-tiny"], "dtypes": ["float32"], "shapes": ["2x8"], "tokens": ["mezo"]}
    with pytest.raises(UserError) as caught:
        cases.cases(**{**given, "threads": 1, **changes})
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "mezzo"], "Did you mean 'mezo'?"),
        (["--model", "opt-tiny", "--shape", "2x999"], "seq_len"),  # known to the child alone
    ],
)
def test_a_mistake_is_one_line_and_exit_code_two(
    tmp_path: Path, arguments: list[str], message: str
):
    done = zometer(*arguments, "--out", tmp_path / "out")
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_one_line(tmp_path: Path):
    (tmp_path / "taken").write_text("")
    done = zometer(*QUICK, "--no-noise", "--out", tmp_path / "taken")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "taken" in done.stderr


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("mezo", ("mezo", {})),
        ("mezo:", ("mezo", {})),
        ("mezo:eps=1e-4", ("mezo", {"eps": 1e-4})),
        ("fzoo:candidates=4,distribution=gaussian",
         ("fzoo", {"candidates": 4, "distribution": "gaussian"})),
        ("mezo:restore=exact,rounding=stochastic",
         ("mezo", {"restore": "exact", "rounding": "stochastic"})),
        ("mezo_svrg:anneal=0", ("mezo_svrg", {"anneal": 0})),
    ],
)  # fmt: skip
def test_a_token_is_a_method_and_its_options(token: str, expected: tuple[str, dict[str, object]]):
    assert cases.parse(token) == expected
    cases.method(token)


def test_cases_are_the_product_of_what_is_named_once_each():
    made = cases.cases(["opt-tiny"], ["float32", "bfloat16"], ["2x8", "4x8", "2x8"],
                       ["mezo", "mezo"], threads=1)  # fmt: skip
    assert [(c.dtype, c.shape) for c in made] == [
        ("float32", "2x8"), ("float32", "4x8"), ("bfloat16", "2x8"), ("bfloat16", "4x8"),
    ]  # fmt: skip
    assert all(c.methods == ["mezo"] for c in made)


def test_a_flag_value_is_a_flag_and_a_word_is_a_word():
    _, options = cases.parse("x:a=true,b=3,c=0.5,d=none")
    assert options == {"a": True, "b": 3, "c": 0.5, "d": "none"}
    with pytest.raises(UserError, match="has no value"):
        cases.parse("x:a=")
