"""The command: a folder of records in, a folder with the report out."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.records import RECORD, UserError, read_results, write_atomically
from bench.records.prediction_check import read_prediction_checks
from bench.records.step_speed import read_step_speeds
from reports import export, page
from reports.figures import Drawn, draw_all
from reports.findings import Finding, findings
from reports.load import Tables, load
from reports.table import MARKS, safe
from reports.tables import failures

PAGE = "report.html"


def build(results: Path, out: Path) -> Path:
    """Read every record below ``results``, write the report into ``out``, return its page.

    Writes ``report.html``, ``summary.md``, ``summary.csv``, ``failures.csv``, a CSV file for each
    of a section's first tables and three files for each plot. The same records give the same
    bytes.

    Raises:
        UserError: there is no record, one can't be read, or ``out`` can't be written to.

    """
    told(results, out)
    return out / PAGE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; a user's error is one line on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m reports", description="Tables, plots and one offline page from records."
    )
    parser.add_argument("results", type=Path, help="folder with record.json files, at any depth")
    parser.add_argument("--out", type=Path, help="where to write (default: RESULTS/report)")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    chosen = parser.parse_args(arguments)
    out = chosen.out or chosen.results / "report"
    try:
        made = told(chosen.results, out)
    except UserError as error:
        print(f"zometer: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(made, indent=1) if chosen.json else made["report"])
    return 0


def _write(tables: Tables, found: list[Finding], out: Path) -> Path:
    names = tables.sections()
    drawn = {name: list(draw_all(tables.only(name), page.slug(name))) for name in names}
    try:
        (out / "plots").mkdir(parents=True, exist_ok=True)
        figures = [figure for several in drawn.values() for figure in several]
        for figure in figures:
            _write_figure(out / "plots", figure)
        _drop_stale(out / "plots", {figure.name for figure in figures})
    except OSError as error:
        raise UserError(
            f"Can't write to {out}: {error.strerror}. Free some space or choose another --out.", 3
        ) from error
    write_atomically(out / "summary.md", _markdown(tables, found))
    _write_tables(tables, out / "tables")
    raw = export.summary(tables).to_csv(index=False, lineterminator="\n")
    write_atomically(out / "summary.csv", raw)
    write_atomically(out / "failures.csv", failures.rows(tables).csv())
    write_atomically(out / PAGE, page.render(found, tables, drawn))
    return out / PAGE


def _write_figure(folder: Path, figure: Drawn) -> None:
    write_atomically(folder / f"{figure.name}.svg", figure.svg)
    write_atomically(folder / f"{figure.name}.csv", figure.csv)
    (folder / f"{figure.name}.png").write_bytes(figure.png)


def _write_tables(tables: Tables, folder: Path) -> None:
    """Write the first tables of each section as raw values; drop those of an earlier report."""
    wanted: set[str] = set()
    for section in tables.sections():
        for name, made in page.leading(tables.only(section)).items():
            path = folder / f"{page.slug(section)}--{name}.csv"
            folder.mkdir(exist_ok=True)
            write_atomically(path, made.csv())
            wanted.add(path.stem)
    _drop_stale(folder, wanted)


def _drop_stale(folder: Path, current: set[str]) -> None:
    """Remove what an earlier report drew and this one does not."""
    for path in folder.glob("*--*"):
        if path.suffix in (".svg", ".png", ".csv") and path.stem not in current:
            path.unlink()


def _markdown(tables: Tables, found: list[Finding]) -> str:
    """Return the findings and the summary tables as Markdown."""
    parts = [f"# {page.title(tables)}", "\n".join(f"- {finding.text}" for finding in found)]
    for name in tables.sections():
        part = tables.only(name)
        heading = part.entries[0].record.group_title if part.entries else page.heading_of(part)
        parts.append(f"## {heading or name}")
        for made in page.leading(part).values():
            parts += [made.markdown().rstrip()]
            notes = [f"- {safe(text)}" for text in made.footnotes]
            parts += ["\n".join(notes)] if notes else []
            parts += [f"No run here has: {'; '.join(made.absent)}."] if made.absent else []
            parts += [f"n/a: {' '.join(made.reasons)}"] if made.reasons else []
    parts.append(", ".join(f"{mark} {quality}" for quality, (mark, _) in MARKS.items() if mark))
    return "\n\n".join(part for part in parts if part) + "\n"


def told(results: Path, out: Path) -> dict[str, object]:
    """Build the report as ``build`` does, and return what it says and where it is."""
    speeds, checks = read_step_speeds(results), read_prediction_checks(results)
    alone = (speeds or checks) and not any(results.rglob(RECORD))
    records = [] if alone else read_results(results)
    folders = [path.parent for path in sorted(results.rglob(RECORD))]  # as read_results has them
    tables = load(records, speeds, folders, checks)
    found = findings(tables)
    return _told(tables, found, _write(tables, found, out))


def _told(tables: Tables, found: list[Finding], path: Path) -> dict[str, object]:
    return {
        "report": str(path),
        "suites": page.title(tables),
        "runs": len(tables.entries),
        "step_speeds": len(tables.speeds),
        "prediction_checks": len(tables.checks),
        "outcomes": {status: n for status, _, n in page.outcomes(tables)},
        "findings": [{"kind": f.kind, "text": f.text} for f in found],
    }
