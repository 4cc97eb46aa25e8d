"""What the command line does with flags: told in the summary, fatal, or a reason to run again."""

from __future__ import annotations

import json

import pytest
import typer

from bench import executor
from bench.cell import write_cell
from bench.cli import run as command
from bench.records import Flag, RunRecord, UserError, read_record, write_record

LOST = Flag(name="gpu_lost", severity="invalid", text="fell off the bus")
HOT = Flag(name="throttled", severity="suspect", text="87 degC")
OLD = Flag(name="function_missing", severity="info", text="an old driver")


@pytest.fixture
def play(tmp_path, tiny_suite, monkeypatch):
    """Return a function that runs the tiny suite; each try of a run gets its next flags."""
    made: list[str] = []

    def play(flags, status="completed", **options):
        left = {method: iter(several) for method, several in flags.items()}

        def run(results, cells, progress, memory_snapshot=False):
            made.extend(cell.spec.method for cell in cells)
            for cell in cells:
                folder = cell.folder(results)
                write_cell(folder, cell)
                record = RunRecord(
                    key=cell.spec.key, suite=cell.suite, group_title="g", spec=cell.spec,
                    status=status, reason="r", started_at="2026-01-01T00:00:00+00:00",
                    wall_seconds=1.0, flags=next(left[cell.spec.method]),
                )  # fmt: skip
                write_record(folder, record)
                yield record

        monkeypatch.setattr(executor, "run", run)
        code = 0
        try:
            command.run(str(tiny_suite()), out=tmp_path / "out", only="*", **options)
        except typer.Exit as left_with:
            code = left_with.exit_code
        return code

    play.made, play.out = made, tmp_path / "out"
    return play


def test_the_summary_names_each_flag_once_with_its_runs_and_counts_by_severity(play, capfd):
    assert play({"mezo": [[HOT, OLD]], "ft_sgd": [[HOT, HOT, LOST]]}) == 0
    lines = capfd.readouterr().err.splitlines()
    at = [lines.index(line) for line in ("invalid: 1 flag", "suspect: 3 flags", "info: 1 flag")]
    assert at == sorted(at)
    lost = lines[at[0] + 1]
    assert lost.startswith("  gpu_lost: main--ft_sgd") and "mezo" not in lost
    hot = lines[at[1] + 1]
    assert hot.startswith("  throttled: ") and hot.count("main--") == 2


def test_without_flags_the_summary_says_nothing_of_them(play, capfd):
    assert play({"mezo": [[]], "ft_sgd": [[]]}, strict=True) == 0
    seen = capfd.readouterr().err
    assert "flag" not in seen and "invalid" not in seen


@pytest.mark.parametrize(
    ("flags", "status", "strict", "code"),
    [
        ([LOST], "completed", True, 3),
        ([LOST], "completed", False, 0),
        ([HOT, OLD], "completed", True, 0),
        ([LOST], "failed", True, 4),  # incomplete comes first: there is more to be run
        ([LOST], "out_of_memory", True, 3),
    ],
)
def test_strict_makes_invalid_flags_fatal(play, flags, status, strict, code):
    assert play({"mezo": [flags], "ft_sgd": [[]]}, status=status, strict=strict) == code


def test_an_invalid_run_is_made_again_and_each_try_is_kept(play):
    tries = {"mezo": [[LOST], [LOST], [HOT]], "ft_sgd": [[]]}
    assert play(tries, retry_invalid=5, strict=True) == 0
    assert play.made == ["mezo", "ft_sgd", "mezo", "mezo"]
    (folder,) = play.out.glob("tiny/*mezo*")
    kept = {p.name: read_record(p).flags for p in folder.rglob("record*.json")}
    assert kept == {"record.json": [HOT], "record.try1.json": [LOST], "record.try2.json": [LOST]}


def test_retries_end_and_the_last_record_stands(play):
    tries = {"mezo": [[LOST]] * 9, "ft_sgd": [[]]}
    assert play(tries, retry_invalid=2, strict=True) == 3
    assert play.made == ["mezo", "ft_sgd", "mezo", "mezo"]
    assert play(tries, retry_invalid=2) == 0 and len(play.made) == 4, "two in all, not a call"
    assert play(tries, retry_invalid=3) == 0 and play.made[4:] == ["mezo"]


def test_a_kept_run_that_is_invalid_is_made_again_only_when_asked(play):
    assert play({"mezo": [[LOST]], "ft_sgd": [[]]}) == 0
    assert play({"mezo": [[]], "ft_sgd": [[]]}) == 0 and len(play.made) == 2
    assert play({"mezo": [[]], "ft_sgd": [[]]}, retry_invalid=1, strict=True) == 0
    assert play.made[2:] == ["mezo"]


def test_json_lines_tell_the_flags(play, capsys):
    play({"mezo": [[LOST, HOT]], "ft_sgd": [[]]}, as_json=True)
    told = {
        j["key"].split("--")[1]: j
        for j in map(json.loads, capsys.readouterr().out.split("\n")[:-1])
    }
    assert told["mezo"]["flags"] == [LOST.model_dump(), HOT.model_dump()]
    assert told["ft_sgd"]["flags"] == []


def test_a_memory_snapshot_of_runs_on_the_cpu_is_refused_with_the_reason(play):
    with pytest.raises(UserError, match=r"needs CUDA.*on cpu\. None of the 2 runs") as caught:
        play({"mezo": [[]], "ft_sgd": [[]]}, memory_snapshot=True)
    assert caught.value.exit_code == 2 and play.made == []
