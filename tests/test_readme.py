"""The README is true: its file map is the tree, its commands exist, its links lead somewhere.

``python tests/test_readme.py`` writes the file map anew from the files' own first lines.
"""

from __future__ import annotations

import ast
import configparser
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
MARKS = ("<!-- file map -->\n", "<!-- end of file map -->")
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("C*.md"))]


def first_line(path: Path) -> str:
    if path.suffix == ".toml":
        text = path.read_text()
        if "title" in (read := tomllib.loads(text)):
            return str(read["title"])
        return re.split(r"(?<=\.) ", text.splitlines()[0].removeprefix("# "))[0]
    doc = ast.get_docstring(ast.parse(path.read_text())) or ""
    return doc.splitlines()[0] if doc else ""


def file_map() -> str:
    lines = ["```"]
    for folder in ("zo_core", "bench", "reports", "suites", "tests"):
        files = sorted(p for s in ("*.py", "*.toml") for p in (ROOT / folder).rglob(s))
        for path in files:
            name = path.relative_to(ROOT).as_posix()
            if name.startswith("suites/models/") or not first_line(path):
                continue
            lines.append(f"{name:<44} {first_line(path)}")
    lines.append(f"{'suites/models/*.toml':<44} Model shapes and checkpoints, a file each.")
    return "\n".join([*lines, "```\n"])


def test_the_file_map_is_the_tree():
    between = README.read_text().split(MARKS[0])[1].split(MARKS[1])[0]
    assert between == file_map(), "run: python tests/test_readme.py"


def test_every_file_says_what_it_is():
    for folder in ("zo_core", "bench", "reports"):
        for path in (ROOT / folder).rglob("*.py"):
            assert first_line(path), path


def test_its_commands_are_there():
    text = README.read_text().split("## ")[0]
    assert "tox run -e quickstart" in text and "\ntox run\n" in text, "on the first screen"
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    assert "testenv:quickstart" in tox
    assert "tox run" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


if __name__ == "__main__":
    before, rest = README.read_text().split(MARKS[0])
    README.write_text(before + MARKS[0] + file_map() + MARKS[1] + rest.split(MARKS[1])[1])
