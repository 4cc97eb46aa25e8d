"""Speeds of steps in a report: a section of its own, beside runs or alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.records.step_speed import IN_PLACE, TEXTBOOK, StepCase, StepSpeed, write_step_speed
from reports import speed
from reports.main import build, main


def sample(number: int, seconds: float, forward: float = 1.0) -> dict[str, float]:
    return {
        "round": number,
        "seconds": seconds,
        "cpu_seconds": 2 * seconds,
        "forward_seconds": forward,
        "forward_cpu_seconds": 2.5 * forward,
    }


def step(token: str, ratios: list[float], **changes: Any) -> dict[str, Any]:
    declared = {"queries": 2, "backwards": 0, "noise_passes": 4, "state_bytes": 0,
                "scratch_bytes": 0}  # fmt: skip
    return {
        "token": token,
        "method": "mezo",
        "forwards": 2,
        "declared": declared,
        "samples": [sample(i, 2 * ratio) for i, ratio in enumerate(ratios)],
        "peak": {"peak_bytes": 200, "outside_bytes": 40},
        **changes,
    }


@pytest.fixture
def timed(kit: Any) -> Any:
    """Return a function that makes a record of ``bench step``."""

    def make(**changes: Any) -> StepSpeed:
        fields = {"model": "opt-125m", "dtype": "bfloat16", "batch_size": 8, "seq_len": 64,
                  "methods": ["mezo"], "threads": 2, **changes.pop("case", {})}  # fmt: skip
        case = StepCase.model_validate(fields)
        memory = {"elements": 10, "moved_bytes": 40, "cpu_seconds": [1.0]}
        given = {
            "key": case.key,
            "case": case,
            "started_at": "2026-11-22T09:00:00Z",
            "wall_seconds": 60.0,
            "environment": kit.environment(),
            "model": kit.model_facts(case.model, 125_239_296),
            "weights_bytes": 1000,
            "forward_peak_bytes": 100,
            "steps": [step(TEXTBOOK, [3.0, 4.0], peak={"peak_bytes": 500, "outside_bytes": 600}),
                      step("mezo", [1.1, 1.2, 1.0])],
            "passes": [{"name": "gaussian", "seconds": [0.02], **memory},
                       {"name": IN_PLACE, "seconds": [0.01], **memory}],
        }  # fmt: skip
        return StepSpeed.model_validate({**given, **changes})

    return make


def test_speeds_alone_make_a_report(timed: Any, tmp_path: Path):
    write_step_speed(tmp_path, timed())
    page = build(tmp_path, tmp_path / "report")
    text = page.read_text()
    for words in ("Speed of a step", "Textbook step", "One pass over a large tensor",
                  "opt-125m, bfloat16, 8x64"):  # fmt: skip
        assert words in text, words
    assert {p.name for p in (page.parent / "plots").iterdir()} == {
        f"step_speed--step_speed.{kind}" for kind in ("svg", "png", "csv")
    }
    assert "Speed of a step" in (page.parent / "summary.md").read_text()


def test_speeds_stand_in_a_section_after_the_runs(
    timed: Any, make_record: Any, kit: Any, tmp_path: Path
):
    kit.write(tmp_path, [make_record("mezo", measurements=kit.host(2**30))])
    alone = build(tmp_path, tmp_path / "alone").read_text()
    assert "Textbook step" not in alone and "section-step_speed" not in alone
    write_step_speed(tmp_path, timed())
    text = build(tmp_path, tmp_path / "report").read_text()
    sections = re.findall(r'<section id="section-([^"]+)"', text)
    assert sections == ["main", "step_speed"]
    assert text.index("Textbook step") > text.index('id="section-step_speed"')
    names = {p.stem for p in (tmp_path / "report" / "plots").iterdir()}
    assert names == {"main--memory_by_method", "step_speed--step_speed"}


def test_what_is_plotted_are_medians_of_paired_ratios_with_the_limit(timed: Any, tmp_path: Path):
    write_step_speed(tmp_path, timed())
    out = build(tmp_path, tmp_path / "report").parent
    frame = pd.read_csv(out / "plots" / "step_speed--step_speed.csv")
    theirs, ours = frame.to_dict("records")
    assert ours["ratio_median"] == pytest.approx(1.1)
    assert (ours["ratio_low"], ours["ratio_high"]) == pytest.approx((1.0, 1.2))
    assert ours["cpu_ratio_median"] == pytest.approx(1.1 * 2 / 2.5)
    assert theirs["ratio_median"] == pytest.approx(3.5)
    assert ours["times_faster_than_textbook_median"] == pytest.approx((3 / 1.1 + 4 / 1.2) / 2)
    # 4 passes of 2 * 1000 bytes at 4000 bytes a second, beside two forward passes of 1 s
    assert ours["limit"] == pytest.approx(1 + 4 * 2000 / 4000 / 2)
    assert ours["limit_of_two_passes"] == pytest.approx(1.5)


def test_the_table_tells_ratios_peaks_and_what_could_not_be_run(timed: Any, tmp_path: Path):
    refused = {**step("fzoo:candidates=4", []), "method": "fzoo", "reason": "It diverged, alas."}
    idle = step("mezo:eps=0.1", [1.5], options={"eps": 0.1}, idle_updates=2)
    write_step_speed(tmp_path, timed(steps=[*timed().steps, refused, idle]))
    out = build(tmp_path, tmp_path / "report").parent
    frame = pd.read_csv(out / "tables" / "step_speed--step_speed.csv")
    rows = frame.set_index("step")
    assert rows.loc["MeZO", "ratio"] == pytest.approx(1.1)
    assert rows.loc["MeZO", "peak_ratio"] == pytest.approx(1200 / 1100)
    assert rows.loc["Textbook step", "outside_forwards_bytes"] == 600
    assert pd.isna(rows.loc["Textbook step", "times_faster_than_textbook"])
    text = (out / "report.html").read_text()
    assert "It diverged, alas." in text and "2 updates had a coefficient of 0" in text
    assert "MeZO (eps 0.1)" in text


def test_noise_is_shown_as_a_share_of_the_bandwidth(timed: Any, tmp_path: Path):
    write_step_speed(tmp_path, timed())
    text = build(tmp_path, tmp_path / "report").read_text()
    table = text[text.index('<table class="noise_speed">') :]
    first = re.sub(r"<[^>]+>", " ", table[table.index("<tbody>") : table.index("</tr>", 1000)])
    assert "gaussian" in first and "philox-numba" in first and "50.0 %" in first


def test_a_record_without_textbook_bytes_or_memory_is_shown_with_reasons(
    timed: Any, tmp_path: Path
):
    bare = timed(steps=[step("mezo", [1.1], peak=None)], passes=[], forward_peak_bytes=None)
    write_step_speed(tmp_path, bare)
    text = build(tmp_path, tmp_path / "report").read_text()
    for words in ("The textbook step was not taken", "Bytes were not counted",
                  "Memory was not timed"):  # fmt: skip
        assert words in text, words
    assert '<table class="noise_speed">' not in text


def test_cases_of_one_name_are_told_apart(timed: Any):
    same = [timed(), timed(case={"threads": 1}), timed(case={"dtype": "float32"})]
    assert list(speed.labels(same).values()) == [
        "opt-125m, bfloat16, 8x64, 2 threads",
        "opt-125m, bfloat16, 8x64, 1 threads",
        "opt-125m, float32, 8x64",
    ]
    twins = [timed(), timed(case={"rounds": 9})]
    assert len(set(speed.labels(twins).values())) == 2


def test_a_ratio_of_less_than_one_is_drawn_at_the_edge(timed: Any, tmp_path: Path):
    write_step_speed(tmp_path, timed(steps=[step("mezo", [0.9, 0.95])]))
    page = build(tmp_path, tmp_path / "report")
    assert "0.925" in (page.parent / "plots" / "step_speed--step_speed.svg").read_text()


def test_a_broken_record_is_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "step_speed.json").write_text('{"kind": "step_speed"}')
    assert main([str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and "no valid record of 'bench step'" in told
