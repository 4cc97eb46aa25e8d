"""Many methods over seeds: what each brought and spent, and curves that do not flatter."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from scipy import stats as scipy_stats

from bench.records import METRICS, RunSpec
from reports import bands, comparisons, curves, losses, multiples, settings, stats
from reports.findings import findings
from reports.load import Tables, load
from reports.plots import (
    discover,
    evaluation_loss,
    loss_by_forward_passes,
    memory_by_phase,
    memory_by_size,
)
from reports.svg import drawing
from reports.table import Cell, Table
from reports.tables import evaluations, methods, precision
from reports.theme import Theme

STEPS = 60


@pytest.fixture(scope="module")
def many(kit: Any) -> Tables:
    return load(kit.many_records(methods=14, steps=STEPS))


def row(table: Table, **wanted: str) -> dict[str, Cell]:
    for cells in table.rows:
        named = {c.key: cell for c, cell in zip(table.columns, cells, strict=True)}
        if all(named[key].value == value for key, value in wanted.items()):
            return named
    raise AssertionError(f"no row with {wanted}")


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 7, 10, 29, 100])
def test_student_agrees_with_scipy(freedom: int) -> None:
    assert stats.student(freedom) == pytest.approx(scipy_stats.t.ppf(0.975, freedom), rel=1e-6)


def test_a_gain_is_told_with_its_interval_over_seeds(many: Tables) -> None:
    cells = row(methods.rows(many), method="zo_03")
    # 109 of 200 right before; 125, 126, 127 after: mean 63.0 %, sd 0.5, t(2) 0.5 / sqrt(3) = 1.24.
    assert cells["accuracy_fraction"].text == "63.0 % ± 1.2"
    assert cells["accuracy_fraction"].sub == "3 seeds"
    assert cells["change_points"].text == "+8.5 ± 1.2"
    assert cells["change_points"].kind == ""
    assert (cells["forward_passes"].value, cells["backward_passes"].value) == (2 * STEPS, 0)


def test_a_setback_is_called_one(many: Tables) -> None:
    cells = row(methods.rows(many), method="zo_00")
    assert cells["change_points"].text == "\N{MINUS SIGN}2.0 ± 1.2"
    assert (cells["change_points"].sub, cells["change_points"].kind) == (
        "below where it began",
        "alarm",
    )
    told = " ".join(f.text for f in findings(many))
    assert "answer worse after training than before it" in told
    assert "zo_00 by 2.0" in told


def test_a_gain_that_seeds_do_not_bear_out_says_so(many: Tables) -> None:
    cells = row(methods.rows(many), method="zo_04")  # +0.5 ± 1.2 points
    assert cells["change_points"].sub == "interval holds 0"


def test_state_over_what_is_declared_stands_out(many: Tables) -> None:
    cells = row(methods.rows(many), method="zo_03")
    measured = cells["measured_state_bytes"]
    assert (measured.value, measured.kind) == (2**20, "alarm")
    assert measured.sub == "1.00 MiB over what is declared"
    assert cells["declared_state_bytes"].value == 0
    assert row(methods.rows(many), method="zo_04")["measured_state_bytes"].kind == ""


def test_runs_that_did_not_complete_are_rows_with_their_reason(many: Tables) -> None:
    wild = row(methods.rows(many), method="zo_wild")
    assert wild["outcome"].text == "diverged 1 of 3"
    assert "diverged (seed 1): The loss is inf at step 24; lower lr." in wild["outcome"].sub
    assert wild["accuracy_fraction"].sub == "2 seeds"
    unable = row(methods.rows(many), method="zo_unable")
    assert unable["outcome"].sub == "3 seeds; unsupported (seeds 0, 1, 2): needs a CUDA device"
    assert unable["accuracy_fraction"].missing
    assert len(methods.rows(many).rows) == 1 + 14 + 1  # zero-shot, and a second MeZO-SVRG


def test_one_seed_has_no_interval(make_record: Any, kit: Any) -> None:
    marks = [kit.evaluation(0, 100), kit.evaluation(10, 120)]
    cells = row(methods.rows(load([make_record("mezo", evaluations=marks)])), method="mezo")
    assert (cells["accuracy_fraction"].text, cells["accuracy_fraction"].sub) == (
        "60.0 %",
        "1 seed",
    )
    assert (cells["change_points"].text, cells["change_points"].sub) == ("+10.0", "1 seed")


def test_flags_stand_in_the_rows_of_their_runs(kit: Any) -> None:
    rows = methods.rows(load(kit.precision_records()))
    subs = [dict(zip((c.key for c in rows.columns), r, strict=True))["outcome"].sub
            for r in rows.rows]  # fmt: skip
    assert [("⚑ resumed (1 of 3 runs)" in sub) for sub in subs].count(True) == 1


def test_precision_shows_what_rounding_did(kit: Any) -> None:
    table = precision.rows(load(kit.precision_records()))
    assert len(table.rows) == 4
    cells = row(table, dtype="bfloat16", rounding="stochastic")
    assert cells["restore"].text == "exact"
    assert cells["estimate_changed_share"].text == "0.00 %"
    assert cells["estimate_drift_rms"].text == "0"
    assert cells["update_surviving_share"].text == "102.00 %"
    assert cells["accuracy_fraction"].text == "62.0 % ± 1.2"
    # The last tenth of 50 losses: 0.4 + seed / 100.
    assert cells["training_loss_nats"].value == pytest.approx(0.41)
    exact32 = row(table, dtype="float32")
    assert exact32["restore"].text == "default"
    assert exact32["update_surviving_share"].text == "> 99.99 %"  # never rounded up to all
    assert exact32["method"].sub == ""  # what has a column is not said twice
    assert precision.rows(load(kit.accuracy_records())).rows == ()


def test_a_precision_run_that_diverged_says_so(kit: Any) -> None:
    *others, last = kit.precision_records()
    failure = kit.Failure(cause="NonFiniteLoss", step=3)
    changes = {"status": "failed", "reason": "The loss is nan.", "failure": failure}
    table = precision.rows(load([*others, last.model_copy(update=changes)]))
    said = row(table, rounding="stochastic")["method"].sub
    assert said == "diverged (seed 2): The loss is nan.; ⚑ resumed (1 of 3 runs)"
    assert len(table.rows) == 4


def test_written_answers_have_their_f1(make_record: Any, kit: Any) -> None:
    final = kit.evaluation(10, 1, n=2, predictions=[], scores=[1.0, 0.25])
    tables = load([make_record("mezo", evaluations=[final])])
    for table in (methods.rows(tables), evaluations.rows(tables)):
        (cells,) = table.rows
        named = dict(zip((c.key for c in table.columns), cells, strict=True))
        assert named["token_f1_fraction"].text == "62.5"


def test_losses_are_smoothed_seed_by_seed_and_counted_in_queries(make_record: Any) -> None:
    def run(seed: int, values: list[float]) -> Any:
        steps = {"losses": values, "seconds": [1.0] * 20, "queries": [4] + [2] * 19,
                 "backwards": [0] * 20}  # fmt: skip
        return make_record("mezo", steps=steps, spec={"seed": seed, "steps": 20})

    tables = load([run(0, [float(i) for i in range(20)]), run(1, [10.0 + i for i in range(20)])])
    frame = losses.along(tables, "forward_passes")
    last = frame[frame["step"] == 20].sort_values("value")
    assert set(last["window_steps"].dropna()) == {2}
    # Mean of losses 18 and 19, and of 28 and 29.
    assert last[last["kind"] == "run"]["value"].tolist() == [18.5, 28.5]
    (mean,) = last[last["kind"] == "mean"].to_dict("records")
    assert (mean["value"], mean["low"], mean["high"], mean["seeds"]) == (23.5, 18.5, 28.5, 2)
    assert set(last["forward_passes"]) == {4 + 19 * 2}
    assert set(frame.loc[frame["step"] == 1, "forward_passes"]) == {4}


def test_a_long_curve_is_thinned_after_smoothing(make_record: Any) -> None:
    steps = {"losses": [1.0] * 999 + [101.0], "seconds": [1.0] * 1000}
    tables = load([make_record("mezo", steps=steps, spec={"steps": 1000})])
    frame = losses.along(tables, "step")
    run = frame[frame["kind"] == "run"]
    assert len(run) <= losses.MOST_POINTS + 2
    assert (run["step"].min(), run["step"].max()) == (1, 1000)
    assert run["value"].iloc[-1] == pytest.approx(2.0)  # 100 steps, all of them looked at


def test_a_mean_never_goes_on_without_a_seed_that_ended(many: Tables) -> None:
    for frame in (losses.along(many, "step"), curves.along(many, "forward_passes")):
        wild = frame[frame["method"] == "zo_wild"]
        assert wild[wild["kind"] == "mean"]["step"].max() <= 23
        assert wild[wild["kind"] == "run"]["step"].max() == STEPS
        assert set(wild["ended"].dropna()) == {"diverged"}
        assert set(wild.loc[wild["kind"] == "mean", "seeds"]) == {3}


def test_a_seed_that_diverged_before_it_was_evaluated_still_counts(
    make_record: Any, kit: Any
) -> None:
    early = make_record("mezo", status="failed", evaluations=[kit.evaluation(0, 100)],
                        spec={"seed": 1})  # fmt: skip
    marks = [kit.evaluation(0, 100), kit.evaluation(10, 150, 20, seconds=9.0)]
    tables = load([make_record("mezo", evaluations=marks), early])
    for frame in (curves.along(tables, "forward_passes"), evaluation_loss.data(tables)):
        assert frame.loc[frame["kind"] == "mean", "step"].tolist() == [0]


def test_many_configurations_get_a_panel_a_method_with_the_reference(many: Tables) -> None:
    data = loss_by_forward_passes.data(many)
    with drawing():
        figure = loss_by_forward_passes.draw(data, Theme())
    titles = [panel.get_title(loc="left") for panel in figure.axes]
    assert titles[0] == "MeZO"
    assert len(titles) == 13  # those that took a step: not zero-shot, not the unsupported one
    assert titles.count("mezo_svrg") == 1
    named = [[line.get_label() for line in panel.get_lines()] for panel in figure.axes]
    assert ["MeZO, for reference" in lines for lines in named] == [False] + [True] * 12
    svrg = figure.axes[titles.index("mezo_svrg")].get_legend()
    assert svrg is not None
    assert [text.get_text() for text in svrg.get_texts()] == ["mezo_svrg", "storage dense"]


def test_a_curve_that_leaves_its_panel_says_how_far_it_goes(many: Tables) -> None:
    data = loss_by_forward_passes.data(many)
    with drawing():
        figure = loss_by_forward_passes.draw(data, Theme())
    (cut,) = [p for p in figure.axes if p.texts]
    assert cut.get_title(loc="left") == "zo_wild"
    high = data.loc[data["method"] == "zo_wild", "value"].max()
    assert cut.texts[0].get_text() == f"up to {high:.3g} ↑"
    assert cut.get_ylim()[1] < high


def test_every_plot_of_many_configurations_is_drawn_without_a_crowded_legend(many: Tables) -> None:
    drawn = set()
    for name, plot in discover().items():
        data = plot.data(many)
        if data.empty:
            continue
        drawn.add(name)
        with drawing():
            figure = plot.draw(data, Theme())
        entries = [len(legend.get_texts()) for legend in figure.legends]
        assert sum(entries) <= multiples.MANY, name
    assert {"loss", "accuracy_by_seconds", "memory_by_size", "step_time"} <= drawn


def test_phases_of_many_configurations_have_named_rows(make_record: Any, kit: Any) -> None:
    records = [
        make_record(f"zo_{i}", spec={"measure": "memory"},
                    measurements=[*kit.host(2**30), kit.number("host_peak_bytes", "load", 2**30),
                                  kit.number("host_peak_bytes", "train", 2**30 + i)])
        for i in range(9)
    ]  # fmt: skip
    with drawing():
        figure = memory_by_phase.draw(memory_by_phase.data(load(records)), Theme())
    assert [panel.get_title(loc="left") for panel in figure.axes] == ["load", "train"]
    names = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert names == [f"zo_{i}" for i in range(9)]


def test_sizes_of_many_methods_get_a_panel_each_on_the_same_axes(
    make_record: Any, kit: Any
) -> None:
    methods_of = ["mezo", *(f"zo_{i}" for i in range(9))]
    records = [
        make_record(m, spec={"model": model, "measure": "memory", "options": {"eps": eps}},
                    model=kit.model_facts(model, n), measurements=kit.host(4 * n * (1 + i / 9)))
        for i, m in enumerate(methods_of) for model, n in kit.SIZES.items()
        for eps in ((0.1, 0.2) if m == "zo_3" else (0.1,))
    ]  # fmt: skip
    with drawing():
        figure = memory_by_size.draw(memory_by_size.data(load(records)), Theme())
    assert [panel.get_title(loc="left") for panel in figure.axes][:2] == ["MeZO", "zo_0"]
    assert len(figure.axes) == 10
    assert len({panel.get_ylim() for panel in figure.axes}) == 1
    legend = figure.axes[4].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["eps 0.1", "eps 0.2"]


def test_held_back_losses_are_drawn_over_seeds(many: Tables) -> None:
    data = evaluation_loss.data(many)
    means = data[(data["kind"] == "mean") & (data["method"] == "zo_03")]
    assert means["step"].tolist() == [0, 12, 24, 36, 48, 60]
    # 1.2 - right / 250, at 125, 126, 127 right.
    assert means["value"].iloc[-1] == pytest.approx(1.2 - 126 / 250)


def test_many_configurations_are_compared_with_the_references_alone(many: Tables) -> None:
    pairs = {(c.a.name, c.b.name) for c in comparisons.compare(many)}
    assert {a for a, _ in pairs} == {"Zero-shot / inference", "MeZO"}
    assert ("Zero-shot / inference", "MeZO") in pairs
    assert ("MeZO", "Zero-shot / inference") not in pairs
    assert len(pairs) == 14 + 13  # 13 methods that took a step, one of them twice


def test_every_field_of_a_spec_that_decides_a_result_tells_two_runs_apart() -> None:
    base = {"method": "mezo", "model": "m", "task": "t", "steps": 5}
    other: dict[str, Any] = {
        "lr": 0.5, "lr_schedule": "linear", "lr_warmup_steps": 3, "options": {"eps": 0.5},
        "task": "u", "prompt": "p", "objective": "head", "score": "f1", "demonstrations": 4,
        "tuning": "lora", "tuning_options": {"r": 4}, "dtype": "bfloat16", "device": "cuda",
        "batch_size": 3, "micro_batch_size": 2, "anchor_examples": 9, "autocast": "bfloat16",
        "checkpointing": True, "seq_len": 7, "steps": 6, "train_examples": 9,
        "eval_examples": 9, "threads": 3, "memory_limit_bytes": 2**30,
        "target_accuracy": 0.5,
    }  # fmt: skip
    elsewhere = {"group", "method", "model", "seed", "measure", "time_limit_seconds",
                 "warmup_steps", "eval_every", "save_every", "eval_batch_size"}  # fmt: skip
    assert set(other) | elsewhere >= set(RunSpec.model_fields)
    plain = settings.words(RunSpec(**base), "here")
    for name, value in other.items():
        changed = settings.words(RunSpec(**{**base, name: value}), "here")
        assert settings.describe(changed, settings.varying([plain, changed])), name


def test_the_metrics_of_rounding_are_those_of_the_records() -> None:
    assert set(precision.METRICS) <= set(METRICS)


def test_a_frame_without_means_is_drawn(make_record: Any) -> None:
    frame = bands.over_seeds(
        pd.DataFrame({"facet": "m", "method": "x", "series": "x", "key": ["a", "b"],
                      "seed": [0, 1], "step": [1, 2], "value": [1.0, 2.0]}),
        load([make_record("mezo")]), "step",
    )  # fmt: skip
    assert set(frame["kind"]) == {"run"}
    with drawing():
        bands.draw(frame, bands.Look("step", "Step", "Loss"), Theme())
