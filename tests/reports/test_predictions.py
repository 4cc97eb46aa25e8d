"""Tables and plots of what was predicted, from records alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.predict.gpus import find
from bench.records import METRICS, Measurement, Metric, Quality, RunRecord
from reports import export, findings
from reports.load import load
from reports.page import outcomes
from reports.plots import memory_by_phase, memory_by_scale, memory_by_size, met
from reports.tables import failures, prediction, published, summary
from reports.theme import Theme

ALLOCATED = "device_allocated_peak_bytes"
ERROR = "predicted_minus_measured_allocated_bytes"
GIB = 1 << 30
SIZES = {"opt-125m": 125, "opt-1.3b": 1300, "opt-13b": 13000}


Predicted = Callable[..., RunRecord]


def number(metric: str, value: float, phase: str = "run", quality: Quality = "predicted") -> Any:
    return Measurement(
        metric=metric, phase=phase, value=int(value), unit="B", quality=quality, source="traced"
    )


@pytest.fixture
def predicted(kit: Any) -> Predicted:
    """Return what makes the record of a run that was predicted and not made."""

    def made(model: str, method: str = "mezo", factor: float = 1.0) -> RunRecord:
        weights = SIZES[model] * 2_000_000
        peak = weights * factor
        bands = {"low": 0.25, "expected": 0.6, "high": 1.0}
        found = [
            number(ALLOCATED, peak), number(ALLOCATED, weights, "load"),
            number(ALLOCATED, peak, "forward"),
            number("device_reserved_peak_bytes", 1.1 * peak),
            *(
                number(f"predicted_process_{w}_bytes", 1.1 * peak + g * GIB)
                for w, g in bands.items()
            ),
        ]  # fmt: skip
        own = {m.metric: Metric("B", "a test's") for m in found}
        own[ERROR] = Metric("B", "its error")
        facts = dict(parameter_bytes=weights, family="opt")
        record: RunRecord = kit.make(
            method,
            spec=dict(device="cuda", model=model, task="random_tokens"),
            status="skipped",
            reason="predicted, not run",
            model=kit.model_facts(model, SIZES[model] * 1_000_000, **facts),
            predicted=found,
            definitions=METRICS | own,
        )
        return record

    return made


def grid(predicted: Predicted, **factors: float) -> list[RunRecord]:
    return [predicted(model, method, f) for method, f in factors.items() for model in SIZES]


def column(table: Any, key: str) -> list[Any]:
    return list(table.frame()[key])


def test_each_predicted_configuration_has_a_row(predicted: Predicted, kit: Any) -> None:
    made = prediction.rows(load([*grid(predicted, mezo=1.1), kit.make("ft_sgd")]))
    assert column(made, "model") == list(SIZES)
    assert column(made, "allocated_bytes") == [int(2.2e6 * n) for n in SIZES.values()]
    assert set(column(made, "peak_phase")) == {"forward"}


def test_an_error_stands_beside_what_was_measured(predicted: Predicted) -> None:
    one = predicted("opt-125m")
    real = number(ALLOCATED, 0.8 * 250e6, quality="exact")
    both = one.model_copy(
        update={
            "status": "completed",
            "measurements": [real],
            "predicted": [*one.predicted, number(ERROR, 0.2 * 250e6)],
        }
    )
    made = prediction.rows(load([both]))
    assert column(made, "error_bytes") == [50_000_000]
    cell = made.rows[0][-1]
    assert cell.text.startswith("+47.7 MiB") and "25" in cell.sub


def test_without_predictions_there_is_no_row(kit: Any) -> None:
    assert not prediction.rows(load([kit.make()])).rows


def scaled(tables: Any) -> tuple[Any, Any]:
    """Return what is drawn of predictions, and what papers print."""
    data = memory_by_scale.data(tables)
    return data[data["kind"] == "predicted"], data[data["kind"] == "published"]


def test_methods_that_need_the_same_share_a_line_that_names_them_all(
    predicted: Predicted,
) -> None:
    records = grid(predicted, mezo=1.0, mezo_sign=1.004, mezo_block=0.998, ft_adamw=6.0)
    guessed, _ = scaled(load(records))
    assert dict(zip(guessed["line"], guessed["methods"], strict=True)) == {
        "FT-AdamW": "FT-AdamW", "MeZO": "MeZO, mezo_block, mezo_sign",
    }  # fmt: skip
    assert len(guessed) == 2 * len(SIZES)
    assert (guessed["low"] < guessed["expected"]).all()
    assert (guessed["expected"] < guessed["high"]).all()
    # A method that lacks a size is not what the others are there.
    guessed, _ = scaled(load([r for r in records if r.spec.method != "mezo_sign"][1:]))
    assert set(guessed["methods"]) == {"MeZO", "mezo_block", "FT-AdamW"}


def test_the_scale_is_drawn_with_the_cards_that_lie_on_it(predicted: Predicted) -> None:
    tables = load(grid(predicted, mezo=1.0, mezo_block=1.0, ft_adamw=6.0))
    assert met(memory_by_scale, tables)  # type: ignore[arg-type]
    figure = memory_by_scale.draw(memory_by_scale.data(tables), Theme())
    (panel,) = figure.axes
    labels = {text.get_text() for text in panel.texts}
    assert labels == {"24 GB", "80 GB", "141 GB"}
    levels = {float(line.get_ydata()[0]) for line in panel.lines}
    assert levels >= {float(find(card).usable) for card in ("rtx-4090", "h100-80gb", "h200")}
    (key,) = figure.legends
    assert [text.get_text().replace("\n", " ") for text in key.texts] == [
        "FT-AdamW", "MeZO, mezo_block", "weights alone", "printed in a paper, in its precision",
    ]  # fmt: skip


def test_families_have_panels_on_one_axis_of_bytes(predicted: Predicted) -> None:
    records = grid(predicted, mezo=1.0)
    other = records[2].model
    assert other is not None
    facts = other.model_copy(update={"family": "llama", "parameters": 7 * 10**9})
    spec = records[2].spec.model_copy(update={"model": "llama-7b"})
    changes = {"key": "another", "model": facts, "spec": spec}
    records.append(records[2].model_copy(update=changes))
    figure = memory_by_scale.draw(memory_by_scale.data(load(records)), Theme())
    opt, llama = figure.axes
    assert (opt.get_title(loc="left"), llama.get_title(loc="left")) == ("OPT", "LLaMA")
    assert opt.get_ylim() == llama.get_ylim()
    assert not opt.texts and {t.get_text() for t in llama.texts} == {"24 GB"}


def test_what_papers_print_stands_where_its_conditions_are_known(predicted: Predicted) -> None:
    _, printed = scaled(load(grid(predicted, mezo=1.0, ft_adamw=6.0)))
    told = printed.set_index(["model", "method"])["expected"] / GIB
    assert told.to_dict() == {
        ("opt-1.3b", "mezo"): 4.0, ("opt-13b", "mezo"): 26.0, ("opt-1.3b", "ft_adamw"): 27.0,
    }  # fmt: skip  # OPT-13B with Adam filled its cards
    assert set(printed["family"]) == {"opt"}
    _, printed = scaled(load(grid(predicted, mezo=1.0)))
    assert set(printed["method"]) == {"mezo"}


def test_the_scale_is_left_out_where_nothing_was_predicted(kit: Any) -> None:
    assert memory_by_scale.data(load([kit.make()])).empty


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    """A results folder with one run and a comparison with papers."""
    texts = {
        "paper": "MeZO Table 22", "model": "OPT-13B", "method": "mezo", "printed": "26",
        "predicted": "27.0", "error": "+4 %", "verdict": "within", "GPUs": "1 / 1", "note": "",
    }  # fmt: skip
    row = {
        "texts": texts, "right": True, "predicted_bytes": 27 * GIB, "figure": "process",
        "error": 0.04, "printed_gib": 26.0, "published_note": "rounded", "provenance": "paper",
    }  # fmt: skip
    wrong = {**row, "right": False, "texts": {**texts, "verdict": "high"}}
    fewer = {**row, "right": False, "gpus_printed": 2, "gpus_predicted": 1}
    told = {"note": "GiB.", "headings": list(texts), "rows": [row, wrong, fewer]}
    (tmp_path / published.FILE).write_text(json.dumps(told))
    return tmp_path


def test_published_numbers_are_found_beside_the_runs(comparison: Path, kit: Any) -> None:
    record = kit.make()
    made = published.rows(load([record], folders=[comparison / "suite" / record.key]))
    assert column(made, "printed_gib") == [26.0] * 3
    assert column(made, "predicted_gib") == [27.0] * 3
    assert [(row[6].kind, row[7].kind) for row in made.rows] == [
        ("", ""), ("alarm", ""), ("", "alarm"),
    ]  # fmt: skip
    assert not published.rows(load([record])).rows


def test_what_is_predicted_did_not_fail_to_complete(predicted: Predicted) -> None:
    tables = load([predicted("opt-125m"), predicted("opt-1.3b")])
    texts = [f.text for f in findings.findings(tables) if f.kind == "outcome"]
    assert texts == ["2 runs predicted, not made."]
    assert failures.rows(tables).rows == () and outcomes(tables) == [("skipped", "predicted", 2)]


LIVE = "host_allocated_peak_bytes"


def on_cpu(kit: Any, guess: float | None, real: float | None, **spec: Any) -> RunRecord:
    """Return a memory run on the CPU, its live tensors predicted and measured."""
    found = [number(LIVE, real, quality="exact")] if real else []
    record: RunRecord = kit.make(
        spec=dict(measure="memory", **spec),
        measurements=[*kit.host(900), *found],
        predicted=[number(LIVE, guess)] if guess else [],
        definitions=METRICS | {LIVE: Metric("B", "live")},
    )
    return record


def test_the_summary_has_the_predicted_live_tensors_of_a_run_on_the_cpu(kit: Any) -> None:
    tables = load([on_cpu(kit, 990, 1000, seed=0), on_cpu(kit, 970, 1000, seed=1)])
    made = summary.rows(tables)
    (row,) = made.rows
    cell = row[[c.key for c in made.columns].index("predicted_peak_bytes")]
    assert cell.value == 980 and cell.quality == "predicted"
    assert (
        cell.sub.startswith("tensors, ")
        and "\N{MINUS SIGN}2.0 %" in cell.sub
        and "1000 B" in cell.tip
    )
    (raw,) = export.summary(tables).to_dict("records")
    assert raw["predicted_basis"] == "live tensors" and raw["predicted_peak_bytes"] == 980


def test_a_prediction_on_the_cpu_stands_alone_where_nothing_was_measured(kit: Any) -> None:
    made = summary.rows(load([on_cpu(kit, 990, None), on_cpu(kit, None, 1000, lr=1e-3)]))
    at = [c.key for c in made.columns].index("predicted_peak_bytes")
    alone, none = sorted((row[at] for row in made.rows), key=lambda cell: cell.missing)
    assert (alone.value, alone.sub) == (990, "tensors") and none.missing


def test_the_summary_calls_it_predicted(predicted: Predicted) -> None:
    made = summary.rows(load([predicted("opt-125m"), predicted("opt-1.3b")]))
    at = [c.key for c in made.columns].index("status")
    assert [row[at].text for row in made.rows] == ["predicted", "predicted"]
    assert column(made, "status") == ["skipped", "skipped"]


def test_predicted_lines_are_named_where_nothing_was_measured(predicted: Predicted) -> None:
    figure = memory_by_size.draw(
        memory_by_size.data(load(grid(predicted, mezo=1.0, ft_adamw=6.0))), Theme()
    )
    (key,) = figure.legends
    assert {"MeZO", "FT-AdamW", "predicted"} <= {text.get_text() for text in key.texts}


def test_phases_of_many_methods_are_shown_of_the_largest_models(predicted: Predicted) -> None:
    few = memory_by_phase.data(load(grid(predicted, mezo=1.0, ft_adamw=6.0)))
    assert list(few["facet"].unique()) == list(SIZES)
    names = {f"zo_{n}": 1.0 for n in range(9)}
    records = grid(predicted, **names)
    frame = memory_by_phase.data(load(records))
    assert list(frame["facet"].unique()) == list(SIZES)  # 2 phases of 3 models: 6 panels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_by_phase, "_MOST", 4)
        frame = memory_by_phase.data(load(records))
        assert list(frame["facet"].unique()) == ["opt-1.3b", "opt-13b"]
        assert len(memory_by_phase.draw(frame, Theme()).axes) == 4
