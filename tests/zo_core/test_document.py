"""docs/methods.md is what the methods say of themselves."""

from __future__ import annotations

from pathlib import Path

from zo_core import document, methods

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_page_is_generated_from_the_files():
    again = "run: python -m zo_core.document > docs/methods.md"
    assert PAGE.read_text() == "\n".join(document.lines()) + "\n", again


def test_every_method_and_storage_has_its_row():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    for name in methods.names():
        assert any(row.startswith(f"| `{name}`: ") for row in rows), name
    told = [row for row in rows if '`storage = "dense"`' in row]
    assert {row.split("`")[1] for row in told} >= {"mezo_adam", "mezo_svrg", "sparse_mezo"}
