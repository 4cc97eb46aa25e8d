"""The page: sections of tables and figures, put into one offline HTML file."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from bench.records import STATUSES, RunRecord
from bench.records.prediction_check import PredictionCheck
from bench.records.step_speed import StepSpeed
from reports import checks, settings, speed, tables, units
from reports.doubts import SEVERITIES, SYMBOLS, WORDS
from reports.figures import Drawn
from reports.findings import Finding
from reports.load import Tables
from reports.run import Run, machine_of
from reports.table import MARKS, Table
from reports.tables import TableFile
from reports.theme import Theme

LEAD = 10
"""Tables whose ``ORDER`` is below this stand before the figures of a section."""
_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Block:
    """A table with its heading."""

    name: str
    title: str
    folded: bool
    table: Table


@dataclass(frozen=True)
class Section:
    """What the page shows of one group of runs."""

    name: str
    title: str
    common: str
    """What all its runs have in common, in words."""
    lead: list[Block]
    """Tables before the figures."""
    figures: list[Drawn]
    blocks: list[Block]


def render(found: list[Finding], data: Tables, drawn: dict[str, list[Drawn]]) -> str:
    """Return the page as HTML that needs nothing but itself.

    ``drawn`` holds the figures of each section. Text from records is escaped.
    """
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["ticks"] = ticks
    files = tables.discover()
    theme = Theme()
    return environment.get_template("page.html.j2").render(
        title=title(data),
        facts=facts(data),
        outcomes=outcomes(data),
        findings=found,
        sections=[section(name, data, files, drawn.get(name, [])) for name in data.sections()],
        blocks=_blocks(files, data, "page"),
        appendix=_blocks(files, data, "appendix"),
        marks=MARKS,
        flags=[(SYMBOLS[s], s, WORDS[s]) for s in SEVERITIES],
        colours=theme.colours(),
    )


def section(name: str, data: Tables, files: dict[str, TableFile], figures: list[Drawn]) -> Section:
    """Return one section of the page."""
    part = data.only(name)
    titles = [run.record.group_title for run in part.entries if run.record.group_title]
    common = settings.common(run.fields for run in part.entries) if part.entries else ""
    if part.speeds and not part.entries:
        titles, common = [speed.TITLE], speed.common(part.speeds)
    elif part.checks and not part.entries:
        titles, common = [checks.TITLE], checks.common(part.checks)
    heading = titles[0] if titles else name
    blocks = _blocks(files, part, "section")
    lead = [block for block in blocks if files[block.name].ORDER < LEAD]
    return Section(slug(name), heading, common, lead, figures, blocks[len(lead) :])


def leading(part: Tables) -> dict[str, Table]:
    """Return the tables of a section that stand before its figures, by name."""
    files = tables.discover()
    lead = [b for b in _blocks(files, part, "section") if files[b.name].ORDER < LEAD]
    return {block.name: block.table for block in lead}


def _blocks(files: dict[str, TableFile], data: Tables, scope: str) -> list[Block]:
    made = [(name, f, f.rows(data)) for name, f in files.items() if f.SCOPE == scope]
    return [Block(name, f.TITLE, _folded(f, made), made) for name, f, made in made if made.rows]


def _folded(file: TableFile, made: Table) -> bool:
    return file.FOLD_ABOVE is not None and len(made.rows) > file.FOLD_ABOVE


def title(data: Tables) -> str:
    """Return the suites' names, joined; where there is no run, what there is."""
    suites = " + ".join(dict.fromkeys(run.record.suite for run in data.entries))
    return suites or heading_of(data)


def heading_of(data: Tables) -> str:
    """Return the heading of what is no run."""
    return checks.TITLE if data.checks and not data.speeds else speed.TITLE


def facts(data: Tables) -> list[tuple[str, str]]:
    """Return what was run, when and where: names with values, one line each."""
    runs, speeds, compared = data.entries, data.speeds, data.checks
    records: list[RunRecord | StepSpeed | PredictionCheck]
    records = [*(run.record for run in runs), *speeds, *compared]
    started = sorted(record.started_at for record in records)
    environments = [record.environment for record in records if record.environment]
    machines = [run.machine for run in runs]
    machines += [machine_of(s.environment, s.case.device) for s in speeds]
    machines += [machine_of(c.environment, "cpu") for c in compared]
    models = [run.spec.model for run in _by_size(runs)]
    models += [s.case.model for s in sorted(speeds, key=lambda s: s.model.parameters)]
    models += [one.model for c in compared for one in c.cells]
    told = [
        ("Started", _span(started)),
        ("Machine", _join(machines)),
        ("Noise kernel", _join(e.noise_kernel for e in environments)),
        ("Versions", _join(_versions(e.zometer, e.python, e.packages) for e in environments)),
        ("Models", _join(models)),
        ("Time of all runs", units.duration(sum(record.wall_seconds for record in records))),
    ]
    return [(name, value or "unknown") for name, value in told]


def outcomes(data: Tables) -> list[tuple[str, str, int]]:
    """Return status, its words and how many runs ended so; those with none are left out."""
    ended: list[str] = [run.record.status for run in data.entries if not run.is_predicted]
    counted = [(status, status.replace("_", " "), ended.count(status)) for status in STATUSES]
    guessed = ("skipped", "predicted", len(data.entries) - len(ended))
    return [item for item in (*counted, guessed) if item[2]]


def ticks(text: str) -> Markup:
    """Return escaped text whose words between backticks are set as code.

    >>> ticks("in `up<date`")
    Markup('in <code>up&lt;date</code>')

    """
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def slug(text: str) -> str:
    """Return a name that suits files and anchors.

    >>> slug("My suite: main")
    'my-suite-main'

    """
    return re.sub(r"[^a-z0-9_.]+", "-", text.lower()).strip("-.") or "main"


def _span(started: list[str]) -> str:
    first, last = (moment[:16].replace("T", " ") for moment in (started[0], started[-1]))
    return f"{first} UTC" if first == last else f"{first} to {last} UTC"


def _versions(zometer: str, python: str, packages: dict[str, str]) -> str:
    named = [f"{name} {packages[name]}" for name in ("torch", "transformers") if name in packages]
    return ", ".join([f"zometer {zometer}", *named, f"Python {python}"])


def _by_size(runs: tuple[Run, ...]) -> list[Run]:
    return sorted(runs, key=lambda run: (run.parameters or 0, run.spec.model))


def _join(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text))
