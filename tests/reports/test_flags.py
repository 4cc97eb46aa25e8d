"""Flags in every row of the runs that carry them, and no claim that stands on an invalid run."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.records import Flag
from reports import export
from reports.comparisons import compare
from reports.figures import Drawn, draw_all
from reports.findings import findings
from reports.load import Tables, load
from reports.main import build
from reports.table import Table
from reports.tables import comparisons, discover, flags, methods, summary

GIB = 2**30
LOSSES = [1 - i / 20 for i in range(10)]
INVALID = Flag(name="other_process", severity="invalid", text="pid 4242 & <b>1.2 GiB</b>")
SUSPECT = Flag(name="host_busy", severity="suspect", text="hot for 3.2 s")
REMARK = Flag(name="accounting_off", severity="info", text="off")


@pytest.fixture
def records(make_record: Any, kit: Any) -> list[Any]:
    """MeZO is best in all and invalid, FT-SGD is suspect, FT-AdamW is sound; one is refused."""

    def one(method: str, place: int, *flags: Flag, **changes: Any) -> Any:
        numbers = [*kit.host(place * GIB), kit.number("estimate_drift_rms", "update", 1e-6),
                   kit.number("cpu_hours_reserved", "run", 0.5),
                   kit.number("phase_self_seconds", "train", 3.0)]  # fmt: skip
        steps = {"losses": LOSSES, "seconds": [float(place)] * 10, "queries": [2] * 10}
        marks = [kit.evaluation(0, 100, draw=1),
                 kit.evaluation(10, 190 - 30 * place, passes=20, draw=1)]  # fmt: skip
        given = dict(measurements=numbers, steps=steps, evaluations=marks, flags=list(flags))
        return make_record(method, **{**given, **changes})

    refused = one("zo_late", 4, INVALID, status="out_of_memory", reason="refused",
                  spec={"memory_limit_bytes": 5 * GIB})  # fmt: skip
    return [one("mezo", 1, INVALID, REMARK), one("ft_sgd", 2, SUSPECT), one("ft_adamw", 3, REMARK),
            refused]  # fmt: skip


@pytest.fixture
def tables(records: list[Any]) -> Tables:
    return load(records)


def marks_by_method(table: Table) -> dict[str, set[str]]:
    """Return the symbols in the cells that name a method."""
    found: dict[str, set[str]] = {}
    for row in table.rows:
        symbols = {d.symbol for cell in row for d in cell.warnings}
        named = [cell.kind.split()[1] for cell in row if cell.kind.startswith("method ")]
        for method in named if len(named) == 1 else []:
            found.setdefault(method, set()).update(symbols)
    return found


def test_every_table_with_a_row_for_a_run_marks_it(tables: Tables) -> None:
    seen = {}
    for name, file in discover().items():
        made = file.rows(tables)
        if marks := marks_by_method(made):
            seen[name] = made
            assert marks.get("mezo", {"⊘"}) == {"⊘"}, name
            assert marks.get("ft_sgd", {"⚠"}) == {"⚠"}, name
            assert marks.get("ft_adamw", set()) == set(), name  # a remark is no mark
            assert marks.get("zo_late", {"⊘"}) == {"⊘"}, name
    assert set(seen) == {"summary", "methods", "precision", "evaluations", "measurements",
                         "failures", "hours", "phase_times"}  # fmt: skip


def test_marks_are_explained_below_the_table_and_in_every_form(tables: Tables) -> None:
    made = summary.rows(tables)
    assert made.footnotes == [
        "⊘ other_process (invalid): pid 4242 & <b>1.2 GiB</b>",
        "⚠ host_busy (suspect): hot for 3.2 s",
    ]
    (line,) = [text for text in made.markdown().splitlines() if "MeZO" in text]
    assert line.startswith("| ⊘ MeZO ")
    frame = made.frame().set_index("method")["flags"]
    assert frame["mezo"] == "invalid:other_process; info:accounting_off"
    assert frame["ft_sgd"] == "suspect:host_busy"
    raw = export.summary(tables).set_index("method")
    assert raw.loc["mezo", "flags_invalid"] == "other_process 1/1"
    assert raw.loc["ft_sgd", "flags_suspect"] == "host_busy 1/1"
    assert pd.isna(raw.loc["ft_adamw", "flags_invalid"])
    assert raw.loc["ft_adamw", "flags_info"] == "accounting_off 1/1"


def test_a_table_that_is_not_about_runs_has_no_flags_column(tables: Tables) -> None:
    for name in ("environment", "how_measured", "flags"):
        assert "flags" not in discover()[name].rows(tables).frame().columns


def test_the_page_shows_marks_with_their_words_and_escapes_them(
    records: list[Any], kit: Any, tmp_path: Path
) -> None:
    page = build(kit.write(tmp_path / "results", records), tmp_path / "out")
    text = page.read_text()
    cell = re.search(r'<td class="row-name"><span class="flag severity-invalid" title="([^"]*)">⊘'
                     r"</span><span[^>]*>MeZO</span>", text)  # fmt: skip
    assert cell is not None
    assert "other_process: pid 4242 &amp; &lt;b&gt;1.2 GiB" in cell[1]
    assert "<b>1.2" not in text
    written = (page.parent / "summary.md").read_text()
    assert "| ⊘ MeZO " in written
    assert "- ⊘ other_process (invalid): pid 4242 &amp; &lt;b>1.2" in written
    table = pd.read_csv(page.parent / "tables" / "main--summary.csv").set_index("method")
    assert table.loc["ft_sgd", "flags"] == "suspect:host_busy"
    failed = pd.read_csv(page.parent / "failures.csv")
    assert failed["flags"].tolist() == ["invalid:other_process"]


def test_flags_of_several_seeds_say_how_many(make_record: Any) -> None:
    tables = load([make_record("mezo", spec={"seed": s}, flags=[SUSPECT] if s else [])
                   for s in range(3)])  # fmt: skip
    (row,) = summary.rows(tables).rows
    assert row[0].warnings[0].short == "⚠ host_busy (2 of 3 runs)"
    assert "⚠ host_busy (2 of 3 runs)" in row[2].sub


def test_many_remarks_are_counted_not_listed(make_record: Any) -> None:
    several = [Flag(name=f"remark_{i}", severity="info", text="x") for i in range(4)]
    (row,) = summary.rows(load([make_record("mezo", flags=[*several, SUSPECT])])).rows
    assert row[2].sub == "1 seed; ⚠ host_busy; ⚑ 4 remarks"


def test_the_table_of_flags_has_the_gravest_first_and_counts_runs(make_record: Any) -> None:
    hot = [Flag(name="host_busy", severity="suspect", text=f"hot for {i} s") for i in range(3)]
    records = [
        make_record("mezo", spec={"seed": 0}, flags=[REMARK, hot[0], hot[1]]),
        make_record("mezo", spec={"seed": 1}, flags=[REMARK, hot[2]]),
        make_record("mezo", spec={"seed": 2}, flags=[REMARK, INVALID]),
    ]
    made = flags.rows(load(records))
    rows = [[cell.value for cell in row] for row in made.rows]
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("invalid", "other_process", 1), ("suspect", "host_busy", 2), ("info", "accounting_off", 3)
    ]  # fmt: skip
    host_busy = made.rows[1]
    assert (host_busy[2].text, host_busy[2].sub) == ("hot for 0 s", "and 2 other wordings")
    assert host_busy[3].text == "2 of 3"
    assert "hot for 0 s; hot for 1 s" in host_busy[3].detail


def test_the_first_thing_told_is_what_must_not_be_used(tables: Tables) -> None:
    kinds = [finding.kind for finding in findings(tables)]
    assert kinds[:2] == ["outcome", "invalid"]
    text = findings(tables)[1].text
    assert text.startswith("Measurements of 2 of 4 runs must not be used (`other_process` in 2)")
    assert "MeZO" in text
    assert "left out of every comparison" in text
    suspect = next(f.text for f in findings(tables) if f.kind == "doubt")
    assert "suspect in 1 run (`host_busy` in 1), marked ⚠" in suspect


def test_nothing_is_said_of_invalid_runs_where_there_are_none(make_record: Any) -> None:
    tables = load([make_record("mezo", flags=[REMARK]), make_record("ft_sgd")])
    assert {finding.kind for finding in findings(tables)} & {"invalid", "doubt"} == set()


def test_an_invalid_run_is_shown_and_never_held_up_as_better(tables: Tables) -> None:
    told = [f.text for f in findings(tables) if f.kind in ("memory", "accuracy", "time")]
    sizes = next(text for text in told if "times the weights" in text)
    assert "FT-SGD 2.00 GiB" in sizes
    assert "FT-AdamW 3.00 GiB" in sizes
    times = next(text for text in told if text.startswith("Median time of a step"))
    assert "FT-SGD 2.00 s, FT-AdamW 3.00 s" in times
    assert not any("MeZO" in text for text in told)
    (mezo,) = [row for row in summary.rows(tables).rows if row[0].value == "mezo"]
    assert 1.0 * GIB in [cell.value for cell in mezo]  # kept and shown


def test_a_suspect_run_is_compared_all_the_same(tables: Tables) -> None:
    told = " ".join(f.text for f in findings(tables) if f.kind == "accuracy")
    assert "FT-SGD answers better than FT-AdamW" in told


def test_pairs_with_an_invalid_run_have_no_verdict_and_do_not_adjust_the_others(
    tables: Tables, records: list[Any]
) -> None:
    made = comparisons.rows(tables)
    rows = [dict(zip((c.key for c in made.columns), row, strict=True)) for row in made.rows]
    with_mezo = [r for r in rows if "mezo" in r["a"].kind or "mezo" in r["b"].kind]
    assert {r["verdict"].text for r in with_mezo} == {"not ranked: invalid"}
    assert all(r["p_holm"].missing and not r["p"].missing for r in with_mezo)
    others = {(c.a.name, c.b.name): c.adjusted_p for c in compare(tables) if not c.invalid}
    without = {(c.a.name, c.b.name): c.adjusted_p for c in compare(load(records[1:3]))}
    assert others == without
    assert len(others) == 3


def test_who_lived_under_a_wall_is_told_of_valid_runs_alone(make_record: Any, kit: Any) -> None:
    spec = {"memory_limit_bytes": 2 * GIB}
    refused = make_record("ft_adamw", spec=spec, status="out_of_memory", reason="refused",
                          flags=[INVALID])  # fmt: skip
    lived = [make_record(m, spec=spec, measurements=kit.host(GIB), flags=f)
             for m, f in (("mezo", [INVALID]), ("ft_sgd", [SUSPECT]))]  # fmt: skip
    told = [f.text for f in findings(load([refused, *lived])) if "ran out of memory" in f.text]
    assert len(told) == 1
    assert "(flagged invalid: `other_process`)" in told[0]
    assert "FT-SGD completed" in told[0]
    assert "MeZO" not in told[0]


def test_one_invalid_seed_of_three_leaves_the_claim_to_the_two_others(
    make_record: Any, kit: Any
) -> None:
    def one(method: str, seed: int, size: float, *flags: Flag) -> Any:
        return make_record(method, spec={"seed": seed}, measurements=kit.host(size),
                           flags=list(flags))  # fmt: skip

    records = [one("mezo", 0, GIB / 2, INVALID), one("mezo", 1, 2 * GIB), one("mezo", 2, 2 * GIB),
               one("ft_sgd", 0, 3 * GIB)]  # fmt: skip
    told = next(f.text for f in findings(load(records)) if "times the weights" in f.text)
    assert "MeZO 2.00 GiB" in told
    assert any("⊘ other_process (1 of 3 runs)" in row[2].sub
               for row in summary.rows(load(records)).rows)  # fmt: skip


def test_methods_and_precision_name_the_flags_by_severity(tables: Tables) -> None:
    (mezo,) = [row for row in methods.rows(tables).rows if row[0].value == "mezo"]
    assert "⊘ other_process; ⚑ accounting_off" in mezo[1].sub


def series_of(drawn: Drawn) -> set[str]:
    frame = pd.read_csv(io.StringIO(drawn.csv))
    return set(frame["series"].dropna()) if "series" in frame else set()


def test_every_figure_of_runs_marks_their_series_and_says_what_the_mark_means(
    tables: Tables,
) -> None:
    told = {}
    for drawn in draw_all(tables, "main"):
        name = drawn.name.removeprefix("main--")
        told[name] = series_of(drawn) - {"weights alone"}
        assert told[name] <= {"⊘ MeZO", "⚠ FT-SGD", "FT-AdamW", "⊘ zo_late"}, name
        assert {"⊘ MeZO", "⚠ FT-SGD", "FT-AdamW"} <= told[name], name
        for words in ("⊘ invalid: must not be used", "⚠ suspect: look again"):
            assert words in drawn.svg, name
        assert "⚑" not in drawn.svg, name
    assert set(told) >= {"memory_by_method", "step_time", "loss", "accuracy_by_forward_passes"}


def test_figures_of_sound_runs_say_nothing_of_marks(make_record: Any, kit: Any) -> None:
    steps = {"losses": LOSSES, "seconds": [1.0] * 10, "queries": [2] * 10}
    several = [make_record(method, steps=steps, measurements=kit.host(GIB), flags=[REMARK])
               for method in ("mezo", "ft_sgd")]  # fmt: skip
    made = list(draw_all(load(several), "main"))
    assert made and not any("look again" in d.svg or "must not" in d.svg for d in made)
    assert {"MeZO", "FT-SGD"} <= set().union(*map(series_of, made))


def test_of_several_flags_and_settings_the_gravest_marks_a_panel(make_record: Any) -> None:
    steps = {"losses": LOSSES, "seconds": [1.0] * 10, "queries": [2] * 10}
    several = [make_record(f"zo_{n}", steps=steps) for n in range(9)]
    several += [make_record("mezo", steps=steps, spec={"lr": lr}, flags=flags)
                for lr, flags in ((1e-5, [SUSPECT]), (1e-6, [INVALID]), (1e-7, []))]  # fmt: skip
    (loss,) = [d for d in draw_all(load(several), "main") if d.name == "main--loss"]
    assert "⊘ MeZO" in loss.svg  # the panel's title
    assert {"⚠ MeZO (lr 1e-05)", "⊘ MeZO (lr 1e-06)", "MeZO (lr 1e-07)"} <= series_of(loss)
    for words in ("⚠ lr 1e-05", "⊘ lr 1e-06", "lr 1e-07"):
        assert words in loss.svg
    assert "⚠ zo_1" not in loss.svg
