"""``zometer bench prediction``: its grid, its record, its verdicts, and what is kept of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench.cli import app
from bench.predict import checking, grid
from bench.records import UserError
from bench.records.prediction_check import (
    PREDICTION_CHECK,
    CheckCell,
    CheckedCell,
    KnownDifference,
    PredictionCheck,
    key_of,
    read_prediction_checks,
    write_prediction_check,
)
from zo_core import methods

HERE = SimpleNamespace(code="c0de", packages={"torch": "2.13"})


def cell(**fields):
    given = {"method": "mezo", "family": "opt", "dtype": "float32", "attention": "sdpa",
             "tuning": "full"}  # fmt: skip
    return CheckCell.model_validate({**given, **fields})


def checked(one=None, real=None, reason=None, **traced):
    real = {"load": 10_000, "forward": 20_000} if real is None else real
    return CheckedCell(cell=one or cell(), traced={**real, **traced}, real=real, seconds=1.0,
                       reason=reason)  # fmt: skip


def record(*cells, known=()):
    return PredictionCheck.model_construct(cells=list(cells), known=list(known))


def known(**fields):
    given = {"why": "so it is", "phases": ["forward"], "least_bytes": -9000, "most_bytes": 0}
    return KnownDifference.model_validate({**given, **fields})


# The grid


def test_the_grid_is_every_method_family_dtype_attention_and_tuning():
    plain = grid.cells({}, ["training"])
    traced = set(methods.names()) - {"ft_adamw_8bit", "in_context_learning", "linear_probe"}
    assert {c.method for c in plain} == traced
    assert len(plain) == len(traced) * 3 * 2 * 2 * 2 == len(set(plain))
    probes = grid.cells({}, ["linear_probe"])
    assert len(probes) == 3 * 2 * 2 and {c.tuning for c in probes} == {"head"}
    assert {c.variant for c in grid.cells({})} == set(grid.VARIANTS)


def test_every_run_of_the_grid_is_a_run():
    for one in grid.cells({}):
        request = grid.request(one)
        assert request.shape.layers == 2 and request.shape.attention == one.attention
        assert (request.spec.method, request.spec.dtype) == (one.method, one.dtype)
        for name, value in grid.VARIANTS[one.variant].fields.items():
            assert getattr(request.spec, name) == value


def test_axes_choose_among_the_runs_and_unknown_names_are_answered():
    some = grid.cells({"methods": ["mezo"], "dtypes": ["float32"], "families": []}, ["training"])
    assert len(some) == 3 * 2 * 2
    with pytest.raises(UserError, match=r"value of --methods 'mezzo'. Did you mean 'mezo'"):
        grid.cells({"methods": ["mezzo"]})
    with pytest.raises(UserError, match="'ft_adamw_8bit' is not in the grid: its kernels"):
        grid.cells({"methods": ["ft_adamw_8bit"]})
    with pytest.raises(UserError, match=r"Unknown variant 'score2'\. Did you mean 'score'"):
        grid.cells({}, ["score2"])
    with pytest.raises(UserError, match="No run of the grid has families roberta together"):
        grid.cells({"families": ["roberta"]}, ["generation"])


def test_known_differences_are_of_runs_that_the_grid_has_and_say_why():
    every = grid.cells({})
    for one in grid.known():
        assert any(map(one.of, every)), one
        assert len(one.why) > 40 and one.why.endswith(".")
        assert one.least_bytes < one.most_bytes


# Verdicts


def test_a_run_agrees_where_every_phase_is_within_4_kib():
    inside = checked(forward=24_096, load=5_904)
    assert record().verdict(inside) == "agrees" and inside.error_bytes == 4096
    outside = checked(forward=24_097)
    assert record().verdict(outside) == "differs" and outside.beyond() == {"forward": 4097}
    hidden = checked(load=5_903)  # not at the peak of the run
    assert record().verdict(hidden) == "differs" and hidden.error_bytes == 0
    assert record().verdict(checked(real={"run": 9}, run=99_999)) == "agrees"


def test_a_phase_that_was_only_traced_or_only_real_counts_whole():
    assert checked(update=5000).beyond() == {"update": 5000}
    lost = CheckedCell(cell=cell(), traced={}, real={"update": 5000}, seconds=1.0)
    assert lost.beyond() == {"update": -5000}


def test_a_known_difference_explains_its_phase_within_its_bounds_and_runs():
    one = checked(forward=11_000)
    assert record(known=[known()]).verdict(one) == "known"
    for other in (
        known(least_bytes=-8999),
        known(phases=["load"]),
        known(methods=["lozo"]),
        known(families=["llama"]),
        known(dtypes=["bfloat16"]),
        known(attention=["eager"]),
        known(tunings=["lora"]),
        known(variants=["score"]),
    ):
        assert record(known=[other]).verdict(one) == "differs", other
    both = checked(forward=11_000, load=1)
    judge = record(known=[known()])
    assert judge.verdict(both) == "differs" and judge.unexplained(both) == {"load": -9999}


def test_known_differences_that_no_run_shows_any_more_are_told():
    several = record(checked(forward=11_000), known=[
        known(), known(why="gone", phases=["load"]), known(why="other", methods=["lozo"]),
    ])  # fmt: skip
    assert [k.why for k in several.unneeded()] == ["gone"]
    unable = record(checked(reason="no memory"), known=[known()])
    assert unable.unneeded() == [] and unable.counts()["unable"] == 1


# What is kept


@pytest.fixture
def made(monkeypatch):
    """Compare nothing: note what would be, and answer at once."""
    seen = []

    def results(how, jobs, **_):
        for one in jobs:
            seen.append(one.method)
            yield checked(one, reason="no" if one.method == "lozo" else None)

    monkeypatch.setattr(checking.pool, "results", results)
    return seen


CELLS = [cell(method=name) for name in ("mezo", "lozo", "fzoo")]


def run(folder, here=HERE, cells=CELLS):
    return [kept for _, kept in checking.compared(folder, cells, here, 1)]


def test_a_stopped_command_goes_on_where_it_was(made, tmp_path):
    begun = checking.compared(tmp_path, CELLS, HERE, 1)
    next(begun)
    begun.close()
    assert run(tmp_path) == [True, False, False]
    assert made == ["mezo", "lozo", "fzoo"]
    assert run(tmp_path) == [True, False, True]  # what could not be compared is tried again
    with (tmp_path / checking.CELLS).open("a") as file:
        file.write('{"cell": {"meth')
    assert run(tmp_path) == [True, False, True]


def test_other_code_or_libraries_begin_anew(made, tmp_path):
    run(tmp_path)
    other = SimpleNamespace(code="c0de", packages={"torch": "2.14"})
    assert run(tmp_path, other) == [False] * 3
    assert run(tmp_path, SimpleNamespace(code="0ther", packages={"torch": "2.14"})) == [False] * 3


def test_a_finished_record_is_kept_too(made, tmp_path, capsys):
    asked = ["--methods", "mezo", "--variants", "training,head", "--out", str(tmp_path)]
    assert command(*asked) == 0
    assert "Record:" in capsys.readouterr().out and len(made) == 30
    (one,) = read_prediction_checks(tmp_path)
    assert one.key == key_of(c.cell for c in one.cells)
    assert not (tmp_path / one.key / checking.CELLS).exists()
    assert command(*asked) == 0
    assert len(made) == 30 and "30 of 30 runs were kept" in capsys.readouterr().err


# The command


def command(*arguments):
    """Give the command, and return its exit code."""
    return app(["bench", "prediction", *arguments], standalone_mode=False) or 0


@pytest.mark.parametrize(
    ("found", "code", "words"),
    [
        (lambda one: checked(one), 0, None),
        (lambda one: checked(one, forward=50_000), 1, "differs: mezo opt float32 sdpa full: "),
        (lambda one: checked(one, reason="torn"), 4, "could not be compared: mezo opt"),
    ],
    ids=["agrees", "differs", "unable"],
)
def test_exit_codes_and_lines_for_what_differs(
    found, code, words, monkeypatch, tmp_path, capsys
):  # fmt: skip
    monkeypatch.setattr(checking.pool, "results", lambda how, jobs, **_: map(found, jobs))
    asked = ("--methods", "mezo", "--families", "opt", "--dtypes", "float32", "--attention",
             "sdpa", "--tunings", "full", "--variants", "training")  # fmt: skip
    got = command(*asked, "--out", str(tmp_path))
    told = capsys.readouterr()
    assert got == code
    assert (words in told.err) if words else (told.err == "")
    assert "+30,000 B of 20,000" in told.err or code != 1


def test_a_record_that_can_not_be_read_is_one_line(tmp_path):
    (tmp_path / PREDICTION_CHECK).write_text('{"kind": "prediction_check"}')
    with pytest.raises(UserError, match="no valid record of 'bench prediction'"):
        read_prediction_checks(tmp_path)
    with pytest.raises(UserError, match="Choose another --out"):
        write_prediction_check(tmp_path / PREDICTION_CHECK, record().model_copy(
            update={"key": "any"}))  # fmt: skip


def test_one_run_for_real_from_the_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "bench", "bench", "prediction", "--methods", "zero_shot",
         "--families", "opt", "--dtypes", "bfloat16", "--attention", "sdpa", "--tunings", "full",
         "--variants", "training", "--workers", "1", "--json", "--out", str(tmp_path)],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (one,) = json.loads(done.stdout)["cells"]
    assert one["traced"]["forward"] == one["real"]["forward"] > 100e6
    (folder,) = tmp_path.iterdir()
    assert [path.name for path in Path(folder).iterdir()] == [PREDICTION_CHECK]
