"""Numbers in tables against values computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bench.records import read_results
from reports import comparisons, export
from reports.findings import findings
from reports.load import Tables, load
from reports.table import Cell, Table
from reports.tables import discover

MIB, GIB = 2**20, 2**30


@pytest.fixture(scope="module")
def tables(demo: Path) -> Tables:
    return load(read_results(demo))


def row(table: Table, **wanted: str) -> dict[str, Cell]:
    for cells in table.rows:
        named = {c.key: cell for c, cell in zip(table.columns, cells, strict=True)}
        if all(named[key].value == value for key, value in wanted.items()):
            return named
    raise AssertionError(f"no row with {wanted}")


def summary(tables: Tables, section: str) -> Table:
    return discover()["summary"].rows(tables.only(section))


def test_sections_come_one_per_group(tables: Tables) -> None:
    assert set(tables.sections()) == {"accuracy", "memory", "wall"}


def test_accuracy_of_one_run_has_its_standard_error(tables: Tables) -> None:
    cells = row(summary(tables, "accuracy"), method="ft_adamw")
    assert cells["accuracy_fraction"].text == "79.0 % ± 2.9 (n=200)"
    assert cells["zero_shot_fraction"].text == "54.5 %"
    assert cells["majority_fraction"].text == "51.0 %"
    assert "terrible" in cells["majority_fraction"].tip


def test_seeds_are_counted_and_their_spread_is_shown(tables: Tables) -> None:
    cells = row(summary(tables, "accuracy"), method="mezo")
    # 129, 130, 131 of 200 right: mean 65.0 %, sd 0.5 points; error of one run sqrt(.65*.35/200).
    assert cells["accuracy_fraction"].text == "65.0 % ± 3.4 (n=200)"
    assert cells["accuracy_fraction"].sub == "3 seeds, sd 0.5"
    assert cells["status"].sub == "3 seeds"
    # 1.05 GiB + 0, 9, 18 MiB: mean + 9 MiB, sd 9 MiB.
    assert cells["peak_bytes"].value == pytest.approx(1.05 * GIB + 9 * MIB, abs=1)
    assert cells["peak_bytes"].text.endswith("± 9.00 MiB")


def test_host_peak_is_above_the_libraries_with_the_absolute_one_beside_it(tables: Tables) -> None:
    cells = row(summary(tables, "accuracy"), method="zero_shot")
    assert cells["peak_bytes"].value == 620 * MIB
    assert cells["peak_bytes"].sub == "1,020 MiB with libraries"
    assert cells["peak_bytes"].quality == "exact"


def test_warm_up_is_left_out_of_step_times(make_record: Any) -> None:
    steps = {"losses": [1.0] * 6, "seconds": [50.0, 40.0, 1.0, 2.0, 3.0, 4.0]}
    tables = load([make_record("mezo", steps=steps, spec={"warmup_steps": 2, "steps": 6})])
    cells = row(summary(tables, "main"), method="mezo")
    assert cells["step_median_seconds"].value == 2.5
    assert cells["step_median_seconds"].sub == "IQR 1.75\N{EN DASH}3.25 s"


def test_a_memory_run_has_no_times_even_if_it_recorded_some(make_record: Any) -> None:
    steps = {"losses": [1.0] * 6, "seconds": [1.0] * 6}
    tables = load([make_record("mezo", steps=steps, spec={"measure": "memory"})])
    assert any("mean nothing" in text for text in summary(tables, "main").absent)
    assert export.summary(tables)["step_median_seconds"].isna().all()


def test_device_memory_is_the_headline_where_it_was_measured(make_record: Any, kit: Any) -> None:
    numbers = [
        *kit.host(3 * GIB),
        kit.number("device_allocated_peak_bytes", "train", 2 * GIB, source="torch"),
        kit.number("device_reserved_peak_bytes", "train", 3 * GIB, source="torch"),
    ]
    tables = load([make_record("mezo", measurements=numbers, spec={"device": "cuda"})])
    cells = row(summary(tables, "main"), method="mezo")
    assert cells["peak_bytes"].value == 2 * GIB
    assert cells["peak_bytes"].sub == "3.00 GiB reserved"
    assert "phase 'train'" in cells["peak_bytes"].tip


def test_unavailable_is_na_with_its_reason_never_zero(make_record: Any, kit: Any) -> None:
    why = "No cgroup & no /proc."
    numbers = [kit.number("host_peak_bytes", "run", None, quality="unavailable", reason=why)]
    other = make_record("ft_sgd", measurements=kit.host(GIB))
    tables = load([make_record("mezo", measurements=numbers), other])
    cell = row(summary(tables, "main"), method="mezo")["peak_bytes"]
    assert (cell.text, cell.value, cell.tip) == ("n/a", None, why)
    assert why in summary(tables, "main").reasons


def test_only_predicted_runs_show_the_prediction(make_record: Any, kit: Any) -> None:
    guess = [
        kit.number("device_allocated_peak_bytes", "run", 5 * GIB, quality="predicted", source="x")
    ]
    record = make_record("mezo", status="skipped", reason="Predicted only.", predicted=guess)
    cells = row(summary(load([record]), "main"), method="mezo")
    assert cells["predicted_peak_bytes"].text == "5.00 GiB"
    assert cells["predicted_peak_bytes"].quality == "predicted"
    assert "peak_bytes" not in cells


def test_failures_hold_cause_phase_and_bytes(tables: Tables) -> None:
    failures = discover()["failures"].rows(tables)
    assert len(failures.rows) == 3
    cells = row(failures, method="ft_adamw", group="wall")
    raw = [cells[k].value for k in ("requested_bytes", "in_use_bytes", "limit_bytes")]
    assert raw == [108 * MIB, int(1.95 * GIB), 2 * GIB]
    assert (cells["cause"].text, cells["phase"].text) == ("MemoryError", "update")
    crashed = row(failures, outcome="failed")
    assert crashed["requested_bytes"].text == "n/a"
    assert failures.csv().count("\n") == 4


def test_flags_are_listed_with_their_runs(tables: Tables) -> None:
    cells = row(discover()["flags"].rows(tables), severity="suspect")
    assert cells["flag"].text == "swap_used"
    assert cells["runs"].value == 1


def test_comparisons_pair_the_same_examples(make_record: Any, kit: Any) -> None:
    labels = [0] * 20
    task = kit.task_facts(eval_labels=labels, eval_n=20)

    def run(method: str, predictions: list[int], steps: int) -> Any:
        right = predictions.count(0)
        final = kit.evaluation(steps, right, n=20, predictions=predictions)
        return make_record(method, task=task, evaluations=[final], spec={"steps": steps})

    zero = run("zero_shot", [0] * 10 + [1] * 10, 0)  # 10 right
    mezo = run("mezo", [0] * 8 + [1] * 4 + [0] * 8, 10)  # loses 2, wins 8
    adamw = run("ft_adamw", [0] * 20, 10)  # wins 10 over zero-shot, 4 over MeZO
    found = {(c.a.method, c.b.method): c for c in comparisons.compare(load([zero, mezo, adamw]))}
    first = found["zero_shot", "mezo"]
    assert (first.only_a, first.only_b, first.difference) == (2, 8, 0.3)
    assert first.p == pytest.approx(0.109375)
    assert found["zero_shot", "ft_adamw"].p == pytest.approx(2 / 1024)
    assert found["zero_shot", "ft_adamw"].adjusted_p == pytest.approx(6 / 1024)
    assert not first.real
    assert found["zero_shot", "ft_adamw"].real


def test_different_examples_are_never_compared(make_record: Any, kit: Any) -> None:
    a = make_record("mezo", evaluations=[kit.evaluation(10, 150)])
    other = kit.task_facts(eval_digest="0ther")
    b = make_record("ft_sgd", task=other, evaluations=[kit.evaluation(10, 50)])
    assert comparisons.compare(load([a, b])) == []


def test_findings_tell_of_the_wall(tables: Tables) -> None:
    told = " ".join(finding.text for finding in findings(tables))
    assert (
        "Under a limit of 2.00 GiB, FT-AdamW on `smollm2-135m` ran out of memory in `update`, "
        "asking for 108 MiB with 1.95 GiB in use. Under the same limit MeZO completed with a peak "
        "of 1.10 GiB." in told
    )


def test_findings_do_not_rank_what_is_within_noise(make_record: Any, kit: Any) -> None:
    runs = [
        make_record(m, evaluations=[kit.evaluation(10, r, draw=r)])
        for m, r in (("mezo", 130), ("ft_sgd", 134))
    ]
    (told,) = [f.text for f in findings(load(runs)) if f.kind == "accuracy"]
    assert "within noise, so they are not ranked" in told
    assert "+2.0 points" in told


def test_a_lopsided_prompt_is_called_one(make_record: Any, kit: Any) -> None:
    before = kit.evaluation(0, 98, predictions=[1] * 195 + [0] * 5)
    told = [f.text for f in findings(load([make_record("zero_shot", evaluations=[before])]))]
    assert any("answers 'great' to 97.5 % of the examples" in text for text in told)


def test_metrics_of_a_new_tracker_appear_with_their_definition(make_record: Any) -> None:
    number = {"metric": "page_faults", "phase": "train", "value": 12345, "unit": "1",
              "quality": "exact", "source": "getrusage"}  # fmt: skip
    told = {"page_faults": {"unit": "1", "definition": "Major faults & more."}}
    tables = load([make_record("mezo", measurements=[number], definitions=told)])
    found = discover()
    assert row(found["measurements"].rows(tables), metric="page_faults")["value"].text == "12,345"
    cells = row(found["how_measured"].rows(tables), metric="page_faults")
    assert cells["definition"].text == "Major faults & more."


def test_csv_carries_raw_units_and_every_column(tables: Tables) -> None:
    frame = export.summary(tables)
    cell = frame[(frame["group"] == "wall") & (frame["method"] == "mezo")].iloc[0]
    assert cell["peak_bytes"] == int(1.1 * GIB)
    assert cell["memory_limit_bytes"] == 2 * GIB
    assert len(frame) == 3 + 12 + 3


def test_two_machines_are_never_averaged(make_record: Any, kit: Any) -> None:
    there = kit.environment(cpu="Another CPU")
    tables = load([make_record("mezo"), make_record("mezo", environment=there)])
    assert len(export.summary(tables)) == 2
    assert any("2 environments" in f.text for f in findings(tables))
