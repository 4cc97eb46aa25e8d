"""The comparison with papers: which cell is judged by which trace, and which is not judged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bench.cli import app
from bench.predict import against_papers
from bench.predict.against_papers import Row, compared, write
from bench.predict.calibration import Band
from bench.predict.figures import Figures, PhaseFigures
from bench.predict.gpus import GIB, find
from bench.predict.log import Work
from bench.predict.parallel import Parallel
from bench.predict.parallel_rules import spread
from bench.predict.prediction import Prediction
from bench.predict.reference import run_of
from bench.records import ModelFacts, RunSpec

BILLIONS = {"1.3b": 1.316, "2.7b": 2.65, "6.7b": 6.66, "13b": 12.85, "30b": 29.97, "66b": 65.7}
BYTES = {"mezo": 2, "inference": 2, "ft_adam": 20, "ft_sgd": 9, "mezo_svrg": 6, "sparse_mezo": 4}
"""A parameter, about, of each kind of step."""


def traced(spec: RunSpec, kind: str) -> Prediction:
    """Return what a trace would be about, from bytes a parameter."""
    size = spec.model.rpartition("-")[2]
    billions = BILLIONS.get(size, float(size.removesuffix("b")))
    live = int(billions * 1e9 * BYTES[kind]) + GIB
    parts = {"weights": live // 4, "state": live - live // 4} if kind == "ft_adam" else {}
    parts = parts or {"weights": live - GIB, "activations": GIB}
    outside = Band(GIB // 4, GIB // 2, GIB)
    phase = "update" if kind.startswith("ft") else "forward"
    figures = Figures(
        device=0, traced=live, allocated=live, reserved=live, reserved_expandable=live, least=live,
        least_expandable=live, process=outside + live, process_expandable=outside + live,
        workspace=0, temporaries=0, outside=outside,
        phases=(PhaseFigures(phase, live, live, live, live, parts),), components=parts,
        peak_phase=phase,
    )  # fmt: skip
    facts: dict[str, Any] = dict(name=spec.model, family="opt", source="random", parameters=1)
    model = ModelFacts(**facts, trained_parameters=1, parameter_bytes=2)
    work = {"backward": Work()} if kind.startswith("ft") else {"forward": Work()}
    return Prediction(
        spec=spec, emulate="cuda", model=model, layers=64, traced_layers=(64,), steps=2,
        figures={"default": (figures,)}, work=work, facts={},
    )  # fmt: skip


def spread_over(one: Prediction, layout: Parallel | None) -> Prediction:
    """Return what a trace over several GPUs would be about."""
    if layout is None:
        return one
    needs = spread(one, find("a100-80gb"), layout.count)
    assert needs is not None
    return replace(one, figures={"default": needs}, parallel=layout)


@pytest.fixture
def asked() -> list[tuple[RunSpec, str]]:
    """What was to be traced."""
    return []


@pytest.fixture
def over() -> list[tuple[str, str, Parallel]]:
    """What was to be traced over several GPUs."""
    return []


@pytest.fixture
def rows(
    monkeypatch: pytest.MonkeyPatch,
    asked: list[tuple[RunSpec, str]],
    over: list[tuple[str, str, Parallel]],
) -> list[Row]:
    def predicted(
        specs: Sequence[RunSpec], reference: Sequence[str], parallel: Sequence[Parallel | None]
    ) -> Iterator[Prediction]:
        each = list(zip(specs, reference, parallel, strict=True))
        asked.extend((spec, kind) for spec, kind, layout in each if layout is None)
        over.extend((spec.model, kind, layout) for spec, kind, layout in each if layout)
        return (spread_over(traced(spec, kind), layout) for spec, kind, layout in each)

    monkeypatch.setattr(against_papers, "predict_all", predicted)
    return compared()


def one(rows: list[Row], **fields: Any) -> Row:
    (found,) = [r for r in rows if all(getattr(r.cell, k) == v for k, v in fields.items())]
    return found


TABLE = dict(table="Table 22", tuning="full")


def test_a_cell_is_judged_by_the_step_and_precision_that_its_paper_ran(
    rows: list[Row], asked: list[tuple[RunSpec, str]]
) -> None:
    row = one(rows, **TABLE, model="OPT-13B", method="mezo")
    assert row.right and row.compared is not None and row.count == 1
    thirteen = {(s.dtype, s.autocast, kind) for s, kind in asked if s.model == "opt-13b"}
    assert thirteen == {
        ("float16", None, "mezo"), ("float16", None, "inference"),
        ("float32", "bfloat16", "ft_adam"),
    }  # fmt: skip
    assert len({(spec.key, kind) for spec, kind in asked}) == len(asked)  # once each


def test_what_two_cards_held_is_compared_with_what_two_cards_would(rows: list[Row]) -> None:
    row = one(rows, **TABLE, model="OPT-66B", method="mezo")
    assert row.count == 2 and row.compared is not None
    both = 2 * 65.7e9 + 2 * GIB + GIB  # the activations and half a GiB of context on each
    assert row.compared.predicted > both


def test_every_plan_that_is_judged_is_traced_once(
    rows: list[Row], over: list[tuple[str, str, Parallel]]
) -> None:
    assert ("opt-66b", "mezo", Parallel("pipeline", 2)) in over
    assert ("opt-13b", "ft_adam", Parallel("fsdp", 4)) in over
    assert len(set(over)) == len(over)
    done = {(model, kind, layout.count) for model, kind, layout in over}
    judged = {
        (r.cell.model.lower(), against_papers._KINDS[r.cell.method], r.count)
        for r in rows
        if r.count is not None and r.count > 1
    }
    assert judged and judged <= done


def test_a_saturated_cell_judges_the_count_alone(rows: list[Row]) -> None:
    row = one(rows, **TABLE, model="OPT-13B", method="ft_adam")
    assert row.compared is not None and row.compared.verdict == "saturated" and row.count == 4
    assert row.right and replace(row, count=8).right is False
    assert replace(row, count=None).right is None
    assert "saturated" in row.texts()


def test_a_row_with_the_right_memory_on_another_number_of_gpus_is_not_right(
    rows: list[Row],
) -> None:
    row = one(rows, **TABLE, model="OPT-13B", method="mezo")
    assert row.right and row.cell.gpus == 1
    assert replace(row, count=2).right is False and replace(row, count=0).right is False


@pytest.mark.parametrize(("kind", "trains"), [("ft_adam", True), ("mezo", False)])
def test_dropout_is_on_in_fine_tuning_alone(kind: str, trains: bool) -> None:
    seen: list[bool] = []

    class Watching:
        def span(self, phase: str) -> AbstractContextManager[None]:
            return nullcontext()

        def built(self, module: Any) -> None:
            seen.append(module.training)

        def relabel(self, tensors: object, component: str) -> None:
            """Do nothing."""

    spec = RunSpec(method="mezo", model="opt-tiny", task="random_tokens", steps=1, lr=1e-6)
    run_of(kind, [])(spec, Watching(), steps=1)
    assert seen == [trains]


def test_what_a_paper_does_not_print_is_assumed_aloud_and_judges_nothing(rows: list[Row]) -> None:
    row = one(rows, model="OPT-2.7B", method="mezo_svrg")
    assert row.assumed == "batch 64 of 128 tokens" and row.right is None
    assert row.texts()[-1] == "assumed: batch 64 of 128 tokens"
    assert row.compared is not None and row.compared.figure == "reserved"


def test_what_can_not_be_predicted_says_why(rows: list[Row]) -> None:
    assert "is not printed" in one(rows, table="Table 22", model="OPT-13B", method="icl").reason
    row = one(rows, model="GPT2-XL", method="mezo")
    assert row.reason == "GPT2-XL is not in the catalogue" and row.compared is None


def test_the_largest_model_is_the_largest_that_the_machine_holds(rows: list[Row]) -> None:
    figure = [r for r in rows if r.largest]
    told = {(r.cell.method, r.cell.gpus): r.largest for r in figure}
    assert told["mezo", 1] == "opt-30b" and told["mezo", 2] == "opt-66b"
    assert told["mezo", 8] == "opt-175b" and told["ft_adam", 1] == "opt-2.7b"
    assert all(r.right for r in figure if r.cell.method == "mezo" and r.cell.gpus != 4)


def test_the_file_for_reports_holds_texts_and_numbers(rows: list[Row], tmp_path: Path) -> None:
    told = json.loads(write(tmp_path, rows).read_text())
    assert len(told["rows"]) == len(rows)
    first = told["rows"][0]
    assert list(first["texts"]) == told["headings"] and first["predicted_bytes"] > GIB


def test_the_command_prints_the_comparison_and_writes_it(rows: list[Row], tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["predict", "--published", "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "OPT-66B" in done.output and "saturated" in done.output
    assert "3 not predicted: GPT2-XL is not in the catalogue" in done.output
    assert "* assumed: batch 64 of 128 tokens: not printed, so it judges nothing" in done.output
    assert (tmp_path / against_papers.FILE).is_file()
