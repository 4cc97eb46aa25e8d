"""Where rows come from: a file inside an installed package, a local folder, or the hub."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.records import UserError
from bench.tasks.kit.values import Example


def package_file(distribution: str, file: str) -> tuple[Path, str] | None:
    """Return the path of a package's file and the package's version; None if not installed.

    The package is located, never imported: some read all their data when imported.
    """
    spec = importlib.util.find_spec(distribution.replace("-", "_"))
    for folder in spec.submodule_search_locations or [] if spec else []:
        if (Path(folder) / file).is_file():
            return Path(folder) / file, importlib.metadata.version(distribution)
    return None


def hub_source(name: str) -> str:
    """Return where ``hub_rows`` reads the data set from, for the record."""
    return f"local copy of hub {name}" if _local(name).is_dir() else f"hub {name}"


def hub_rows(name: str, split: str, text: str) -> list[Example]:
    """Return one split of the hub data set ``name``: its column ``text``, and ``label``.

    Where the environment variable ``ZOMETER_DATA`` names a folder that holds ``<name>/`` (files
    as on the hub: parquet, csv or json, named after their split), that is read instead. What the
    hub has sent before comes from its cache.

    Raises:
        UserError: neither can be had, or the columns are not there.

    """
    folder = _local(name)
    where = str(folder) if folder.is_dir() else name
    datasets: Any = importlib.import_module("datasets")  # why here: seconds to import; untyped
    try:
        with _no_bars(datasets):
            rows = datasets.load_dataset(where, split=split)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0].rstrip(".")
        raise UserError(
            f"The data set '{name}' can't be had: {first}. Let the hub be reached, or put its "
            f"files below a folder and set ZOMETER_DATA to it (<folder>/{name}/...)."
        ) from error
    if missing := {text, "label"} - set(rows.column_names):
        raise UserError(f"The data set in '{where}' has no column {sorted(missing)[0]!r}.")
    return [Example(row[text].strip(), int(row["label"])) for row in rows]


def _local(name: str) -> Path:
    return Path(os.environ.get("ZOMETER_DATA", "/nowhere")) / name


@contextmanager
def _no_bars(datasets: Any) -> Iterator[None]:
    shown = datasets.utils.are_progress_bars_disabled() is False
    datasets.utils.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.utils.enable_progress_bars()
