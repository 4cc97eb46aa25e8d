"""docs/methods.md is what the methods say of themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from zo_core import document, methods

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_page_is_generated_from_the_files():
    again = "run: python -m zo_core.document > docs/methods.md"
    assert PAGE.read_text() == "\n".join(document.lines()) + "\n", again


def test_scratch_is_what_a_further_parameter_adds():
    """Gradients of float32: 4 bytes, whatever constants stand beside; one of two layers: 2."""
    rows = [line for line in document.lines() if line.startswith("| `")]
    last = {row.split("`")[1]: row.split(" | ")[-1] for row in rows if row.count("|") == 8}
    told = {
        "forward_gradient": "4 |",
        "ft_sgd": "4 |",
        "mezo_svrg_released": "4 |",
        "sparse_mezo": "2 |",
        "hizoo": "pieces |",
        "lozo": "pieces |",
        "mezo": "pieces |",
    }
    assert {name: last[name] for name in told} == told


def test_an_error_in_a_cost_is_not_printed_as_a_row(monkeypatch):
    def broken(name, **options):
        raise ZeroDivisionError

    monkeypatch.setattr(methods, "build", broken)
    with pytest.raises(ZeroDivisionError):
        list(document.lines())


def test_every_method_and_storage_has_its_row():
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    for name in methods.names():
        assert any(row.startswith(f"| `{name}`: ") for row in rows), name
    told = [row for row in rows if '`storage = "dense"`' in row]
    assert {row.split("`")[1] for row in told} >= {"mezo_adam", "mezo_svrg", "sparse_mezo"}
