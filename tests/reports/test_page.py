"""The page and the files beside it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench.records import read_results
from reports import plots
from reports.load import load
from reports.main import build, main
from reports.theme import Theme, title_of

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(demo, tmp_path_factory.mktemp("out")).parent


class _Page(HTMLParser):
    """Collect addresses and ids, and see that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action", "data"):
                self.addresses.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def parsed(path: Path) -> _Page:
    page = _Page()
    page.feed(path.read_text())
    return page


def test_every_promised_file_is_there(built: Path) -> None:
    names = {p.name for p in built.iterdir()}
    assert {"report.html", "summary.md", "summary.csv", "failures.csv", "plots"} <= names
    drawn = {p.stem for p in (built / "plots").glob("*.svg")}
    assert {
        "accuracy--accuracy_by_seconds",
        "accuracy--accuracy_by_forward_passes",
        "accuracy--evaluation_loss",
        "accuracy--loss",
        "accuracy--loss_by_forward_passes",
        "accuracy--memory_by_method",
        "accuracy--step_time",
        "memory--memory_by_phase",
        "memory--memory_by_size",
        "wall--memory_by_method",
    } == drawn
    for name in drawn:
        assert (built / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len(pd.read_csv(built / "plots" / f"{name}.csv")) > 0


def test_the_same_records_give_the_same_bytes(built: Path, demo: Path, tmp_path: Path) -> None:
    again = build(demo, tmp_path).parent
    for path in sorted(p for p in built.rglob("*") if p.is_file()):
        assert (again / path.relative_to(built)).read_bytes() == path.read_bytes(), path.name


def test_the_page_refers_to_nothing_outside_itself(built: Path) -> None:
    page = parsed(built / "report.html")
    assert [a for a in page.addresses if not a.startswith("#")] == []
    assert not re.search(r"https?://", (built / "report.html").read_text())
    assert len(page.ids) == len(set(page.ids))
    assert {a[1:] for a in page.addresses} <= set(page.ids)


def test_text_from_records_is_escaped(built: Path) -> None:
    text = (built / "report.html").read_text()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert "Killed by SIGSEGV &amp; &lt;b&gt;said nothing&lt;/b&gt;." in text


def test_names_with_markup_and_dollars_survive_everywhere(
    make_record: Any, kit: Any, tmp_path: Path
) -> None:
    name = "org/<i>odd</i>_$x^2$"
    facts = kit.model_facts(name)
    changes = {"spec": {"model": name}, "group_title": "<h1>$\\frac$ | title</h1>"}
    record = make_record("_odd", model=facts, measurements=kit.host(2**30), **changes)
    page = build(kit.write(tmp_path, [record]), tmp_path / "report")
    assert "<i>odd" not in page.read_text()
    assert "<h1>$" not in page.read_text()
    assert "<i>" not in (page.parent / "summary.md").read_text()


def test_figures_follow_the_theme(built: Path) -> None:
    text = (built / "report.html").read_text()
    for svg in re.findall(r"<svg role=.*?</svg>", text, flags=re.DOTALL):
        assert not re.findall(r'style="[^"]*#[0-9a-f]{6}', svg)
        assert "var(--ink)" in svg
    for colour in Theme().colours():
        assert text.count(f"--{colour.name}: {colour.dark}") == 2


def test_plotted_data_hold_the_wall_and_the_prediction(built: Path) -> None:
    frame = pd.read_csv(built / "plots" / "memory--memory_by_size.csv")
    cross = frame[frame["kind"] == "out of memory"].iloc[0]
    assert (cross["method"], cross["bytes"]) == ("ft_adamw", 16 * 2**30)
    mezo = frame[(frame["method"] == "mezo") & (frame["parameters"] == 125_239_296)]
    bytes_of = dict(zip(mezo["kind"], mezo["bytes"], strict=True))
    assert bytes_of["measured"] == pytest.approx(4 * 125_239_296 * 1.12, abs=2)
    assert bytes_of["predicted"] == pytest.approx(4 * 125_239_296 * 1.12 * 0.97, abs=2)
    weights = frame[frame["kind"] == "weights"]
    assert sorted(weights["bytes"]) == [4 * n for n in sorted(weights["parameters"])]


def test_phases_are_above_the_libraries(built: Path) -> None:
    frame = pd.read_csv(built / "plots" / "memory--memory_by_phase.csv")
    one = frame[(frame["facet"] == "opt-125m") & (frame["method"] == "ft_adamw")]
    assert dict(zip(one["phase"], one["bytes"], strict=True))["update"] == pytest.approx(
        4 * 125_239_296 * 4.2, abs=2
    )
    assert "perturb" not in set(one["phase"])


def test_accuracy_curves_hold_seeds_and_mean(built: Path) -> None:
    frame = pd.read_csv(built / "plots" / "accuracy--accuracy_by_forward_passes.csv")
    mezo = frame[(frame["method"] == "mezo") & (frame["step"] == 200)]
    assert sorted(mezo[mezo["kind"] == "run"]["accuracy"]) == [0.645, 0.65, 0.655]
    assert mezo[mezo["kind"] == "mean"]["accuracy"].tolist() == [pytest.approx(0.65)]
    assert set(frame["zero_shot"]) == {0.545}
    assert set(frame["majority"]) == {0.51}
    assert "zero_shot" not in set(frame["method"])


def test_a_plot_of_an_earlier_report_does_not_stay(
    demo: Path, make_record: Any, kit: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    build(demo, out)
    (out / "plots" / "mine.svg").write_text("not the report's")
    lone = kit.write(tmp_path / "lone", [make_record("mezo")])
    build(lone, out)
    assert [p.name for p in (out / "plots").iterdir()] == ["mine.svg"]


def test_a_lone_record_makes_a_report(make_record: Any, kit: Any, tmp_path: Path) -> None:
    page = build(kit.write(tmp_path, [make_record("mezo")]), tmp_path / "report")
    assert "MeZO" in page.read_text()


@pytest.mark.parametrize("status", ["failed", "timed_out", "unsupported", "skipped"])
def test_a_lone_run_without_any_fact_makes_a_report(
    make_record: Any, kit: Any, tmp_path: Path, status: str
) -> None:
    record = make_record("x", status=status, environment=None, model=None, task=None)
    page = build(kit.write(tmp_path, [record]), tmp_path / "report")
    assert "unknown machine" in page.read_text()
    assert not list((page.parent / "plots").iterdir())


def test_predictions_alone_are_drawn_hollow(make_record: Any, kit: Any, tmp_path: Path) -> None:
    records = [
        make_record("mezo", status="skipped", spec={"model": f"opt-{i}"},
                    model=kit.model_facts(f"opt-{i}", i * 10**9),
                    predicted=[kit.number("device_allocated_peak_bytes", p, i * 3 * 2**30,
                                          quality="predicted", source="fake tensors")
                               for p in ("run", "load", "update")])
        for i in (1, 7, 66)
    ]  # fmt: skip
    page = build(kit.write(tmp_path, records), tmp_path / "report")
    frame = pd.read_csv(page.parent / "plots" / "main--memory_by_size.csv")
    assert set(frame["kind"]) == {"predicted", "weights"}
    assert (page.parent / "plots" / "main--memory_by_phase.svg").exists()


def test_two_suites_with_one_group_name_stay_apart(
    make_record: Any, kit: Any, tmp_path: Path
) -> None:
    records = [make_record("mezo", suite=s, measurements=kit.host(2**30)) for s in ("a", "B c")]
    page = build(kit.write(tmp_path, records), tmp_path / "report")
    names = {p.name for p in (page.parent / "plots").glob("*.csv")}
    assert names == {"a-main--memory_by_method.csv", "b-c-main--memory_by_method.csv"}


def test_a_plot_dropped_into_the_folder_is_found(
    demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dropped_in.py").write_text(
        "import pandas as pd\nfrom matplotlib.figure import Figure\n"
        "TITLE, CAPTION, ORDER, NEEDS = 'Dropped in', 'One point.', 5, {'runs.key': 1}\n"
        "def data(tables):\n    return tables.runs[['key', 'seed']]\n"
        "def draw(data, theme):\n    return Figure()\n"
    )
    monkeypatch.setattr(plots, "__path__", [*plots.__path__, str(tmp_path)])
    page = build(demo, tmp_path / "out")
    assert "Dropped in" in page.read_text()
    assert (tmp_path / "out" / "plots" / "wall--dropped_in.csv").exists()


def test_a_plot_that_lacks_a_part_is_loud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_done.py").write_text("TITLE = 'x'\n")
    monkeypatch.setattr(plots, "__path__", [*plots.__path__, str(tmp_path)])
    with pytest.raises(ImportError, match=r"half_done.py lacks CAPTION, ORDER, NEEDS"):
        plots.discover()


def test_methods_look_the_same_whatever_stands_beside_them(demo: Path) -> None:
    theme = Theme()
    looks = {
        (theme.colour(m), theme.marker(m)) for m in ("zero_shot", "mezo", "ft_sgd", "ft_adamw")
    }
    assert len(looks) == 4
    assert (theme.colour("lozo"), theme.marker("lozo")) == (
        Theme().colour("lozo"),
        Theme().marker("lozo"),
    )
    assert title_of("lozo") == "lozo"
    assert load(read_results(demo)).runs["series"].str.contains("MeZO").any()


@pytest.mark.parametrize("content", [None, "", '{"schema_version": 99}', "{", "[]"])
def test_bad_input_is_one_line_and_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    folder = tmp_path / "missing" if content is None else tmp_path
    if content:
        (tmp_path / "record.json").write_text(content)
    assert main([str(folder)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 1
    assert told.err.startswith("zometer: ")


def test_an_output_that_is_a_file_is_one_line_and_exit_code_3(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("")
    assert main([str(demo), "--out", str(tmp_path / "taken")]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_reports_runs_where_torch_is_not(demo: Path, tmp_path: Path) -> None:
    results = shutil.copytree(demo, tmp_path / "results")
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from reports.main import main\n"
        f"sys.exit(main([{str(results)!r}, '--json']))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert '"out_of_memory": 2' in done.stdout
    assert (results / "report" / "report.html").exists()
