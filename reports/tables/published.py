"""What papers printed of memory, beside its prediction: ``zometer predict --published``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reports.load import Tables
from reports.table import Cell, Column, Table, table

TITLE = "Published memory figures, predicted"
ORDER = 50
SCOPE = "page"
FOLD_ABOVE = 30

FILE = "published.json"
"""As ``zometer predict --published`` names it, in the results folder."""

COLUMNS = (
    Column("paper", "Paper"),
    Column("model", "Model"),
    Column("method", "Method"),
    Column("printed_gib", "Printed", True, "GiB, or the largest model"),
    Column("predicted_gib", "Predicted", True, "GiB, or the largest model"),
    Column("error", "Error", True),
    Column("verdict", "Verdict"),
    Column("gpus", "GPUs", True, "printed / predicted"),
    Column("note", "Note"),
)


def rows(tables: Tables) -> Table:
    """Return one row per published number; none where no comparison lies beside the runs."""
    found = _find(tables)
    if found is None:
        return table(COLUMNS, [])
    told = json.loads(found.read_text(encoding="utf-8"))
    return table(COLUMNS, [_row(row) for row in told["rows"]], told["note"])


def _find(tables: Tables) -> Path | None:
    folders = {run.folder.parent for run in tables.entries if run.folder is not None}
    for folder in sorted({*folders, *(f.parent for f in folders)}):
        if (folder / FILE).is_file():
            return folder / FILE
    return None


def _row(row: dict[str, Any]) -> list[Cell]:
    texts = row["texts"]
    error = row["error"]
    wrong = row["right"] is False
    counts = row.get("gpus_predicted") not in (None, row.get("gpus_printed"))
    differs = texts["verdict"] not in ("within", "saturated")
    return [
        Cell(texts["paper"], texts["paper"], tip=row["published_note"]),
        Cell(texts["model"], texts["model"]),
        Cell(texts["method"], texts["method"]),
        Cell(texts["printed"], row["printed_gib"]),
        Cell(texts["predicted"], row["predicted_bytes"] and row["predicted_bytes"] / 2**30,
             tip=row["figure"]),
        Cell(texts["error"], error),
        Cell(texts["verdict"], texts["verdict"], kind="alarm" if wrong and differs else ""),
        Cell(texts["GPUs"], texts["GPUs"], kind="alarm" if wrong and counts else ""),
        Cell(texts["note"], texts["note"]),
    ]  # fmt: skip
