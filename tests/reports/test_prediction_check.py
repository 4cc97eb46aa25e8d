"""Predicted memory beside the real in a report: a section of its own, beside runs or alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.records.prediction_check import PredictionCheck, write_prediction_check
from reports.main import build, main


def cell(method: str, error: int = 0, phase: str = "forward", **fields: Any) -> dict[str, Any]:
    named = {"method": method, "family": "opt", "dtype": "float32", "attention": "sdpa",
             "tuning": "full"}  # fmt: skip
    named |= {k: fields.pop(k) for k in list(fields) if k in (*named, "variant")}
    real = {"load": 50 << 20, "forward": 100 << 20}
    return {
        "cell": named,
        "model": "opt-125m",
        "real": real,
        "traced": {**real, phase: real[phase] + error},
        "seconds": 3.0,
        **fields,
    }


CELLS = [
    cell("mezo"),
    cell("mezo", family="llama", dtype="bfloat16"),
    cell("ft_adamw", -40_000, "load"),
    cell("ft_adamw", 4000, "load", tuning="lora"),
    cell("lozo", 2 << 20),
    cell("lozo", family="llama", reason="RuntimeError: no such kernel", real={}, traced={}),
    cell("mezo", 4096, variant="generation"),
]


@pytest.fixture
def checked(kit: Any) -> Any:
    """Return a function that makes a record of ``bench prediction``."""

    def make(cells: list[dict[str, Any]] = CELLS) -> PredictionCheck:
        given = {
            "key": "prediction--some",
            "started_at": "2026-11-22T09:00:00Z",
            "wall_seconds": 18.0,
            "environment": kit.environment(),
            "layers": 2,
            "variants": {"training": "every method", "generation": "50 tokens are written"},
            "left_out": {"ft_adamw_8bit": "its kernels are not torch's"},
            "known": [
                {"why": "A stream's state.", "phases": ["load"], "methods": ["ft_adamw"],
                 "least_bytes": -65536, "most_bytes": 0},
                {"why": "It is gone.", "phases": ["update"], "least_bytes": 0,
                 "most_bytes": 9},
            ],
            "cells": cells,
        }  # fmt: skip
        return PredictionCheck.model_validate(given)

    return make


def test_checks_alone_make_a_report(checked: Any, tmp_path: Path):
    write_prediction_check(tmp_path, checked())
    page = build(tmp_path, tmp_path / "report")
    text = page.read_text()
    for words in ("Predicted memory beside the real", "models of 2 blocks",
                  "equal within 4.00 KiB in 4 of 7 runs on the CPU", "1 differ as is known",
                  "1 could not be compared"):  # fmt: skip
        assert words in text, words
    assert {p.name for p in (page.parent / "plots").iterdir()} == {
        f"prediction_check--prediction_check.{kind}" for kind in ("svg", "png", "csv")
    }
    assert "Error of the predicted peak" not in (page.parent / "failures.csv").read_text()


def test_checks_stand_in_a_section_after_the_runs(
    checked: Any, make_record: Any, kit: Any, tmp_path: Path, capsys: Any
):
    kit.write(tmp_path, [make_record("mezo", measurements=kit.host(2**30))])
    alone = build(tmp_path, tmp_path / "alone").read_text()
    assert "section-prediction_check" not in alone
    write_prediction_check(tmp_path, checked())
    assert main([str(tmp_path), "--out", str(tmp_path / "report"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["runs"], told["prediction_checks"]) == (1, 1)
    text = (tmp_path / "report" / "report.html").read_text()
    sections = re.findall(r'<section id="section-([^"]+)"', text)
    assert sections == ["main", "prediction_check"]


def test_the_table_is_the_largest_error_by_method_and_family(checked: Any, tmp_path: Path):
    write_prediction_check(tmp_path, checked())
    out = build(tmp_path, tmp_path / "report").parent
    rows = pd.read_csv(out / "tables" / "prediction_check--prediction_check.csv")
    rows = rows.set_index("method")
    assert list(rows.index) == ["mezo", "ft_adamw", "lozo"]
    assert rows.loc["mezo", "opt_error_bytes"] == rows.loc["mezo", "llama_error_bytes"] == 0
    assert rows.loc["ft_adamw", "opt_error_bytes"] == 0
    assert rows.loc["ft_adamw", "phase_error_bytes"] == -40_000
    assert rows.loc["lozo", "opt_error_bytes"] == 2 << 20
    assert pd.isna(rows.loc["lozo", "llama_error_bytes"])
    assert list(rows["runs"]) == [2, 2, 2]
    text = (out / "report.html").read_text()
    assert "1 differ" in text and 'class="alarm"' in text
    others = pd.read_csv(out / "tables" / "prediction_check--prediction_check_variants.csv")
    assert list(others["variant"]) == ["generation"]
    assert list(others["opt_error_bytes"]) == [4096]


def test_known_differences_and_others_are_told_with_their_reasons(checked: Any, tmp_path: Path):
    write_prediction_check(tmp_path, checked())
    text = build(tmp_path, tmp_path / "report").read_text()
    table = text[text.index('<table class="prediction_check_known">') :]
    rows = [re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", row)) for row in table.split("<tr>")[2:7]]
    assert "A stream" in rows[0] and "39.1 KiB" in rows[0]
    assert "It is gone." in rows[1] and "not seen in these runs" in rows[1]
    assert "+2.00 MiB" in rows[2] and "forward; lozo opt" in rows[2]
    assert "no such kernel" in rows[3]
    assert "ft_adamw_8bit (its kernels are not torch" in text


def test_what_is_plotted_is_a_run_with_its_farthest_phase(checked: Any, tmp_path: Path):
    write_prediction_check(tmp_path, checked())
    out = build(tmp_path, tmp_path / "report").parent
    frame = pd.read_csv(out / "plots" / "prediction_check--prediction_check.csv")
    assert len(frame) == 6  # but the one that was not compared
    row = frame[frame["method"] == "ft_adamw"].iloc[0]
    assert (row["verdict"], row["error_bytes"], row["phase"]) == ("known", 0, "load")
    assert row["phase_error_bytes"] == -40_000 and row["peak_bytes"] == 100 << 20
    svg = (out / "plots" / "prediction_check--prediction_check.svg").read_text()
    assert "differs as is known" in svg and "+4 KiB" in svg


def test_where_every_peak_is_right_to_the_byte_it_is_said(checked: Any, tmp_path: Path):
    write_prediction_check(tmp_path, checked(CELLS[:3]))
    text = build(tmp_path, tmp_path / "report").read_text()
    assert "Every run&#39;s peak is predicted to the byte." in text


def test_a_broken_record_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "prediction_check.json").write_text('{"kind": "prediction_check"}')
    assert main([str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and "no valid record of 'bench prediction'" in told
