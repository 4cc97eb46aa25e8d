"""Where rows come from: a file inside an installed package, a local folder, or the hub."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.records import UserError
from bench.tasks.kit.order import shuffled
from bench.tasks.kit.values import Example, Examples


def package_file(distribution: str, file: str) -> tuple[Path, str] | None:
    """Return the path of a package's file and the package's version; None if not installed.

    The package is located, never imported: some read all their data when imported.
    """
    spec = importlib.util.find_spec(distribution.replace("-", "_"))
    for folder in spec.submodule_search_locations or [] if spec else []:
        if (Path(folder) / file).is_file():
            return Path(folder) / file, importlib.metadata.version(distribution)
    return None


def hub_source(name: str, config: str | None = None) -> str:
    """Return where ``hub_rows`` reads the data set from, for the record."""
    what = name if config is None else f"{name} ({config})"
    return f"local copy of hub {what}" if _local(name).is_dir() else f"hub {what}"


def hub_rows(
    name: str, split: str, columns: Sequence[str], config: str | None = None
) -> list[dict[str, Any]]:
    """Return these columns of one split of the hub data set ``name``, in its ``config``.

    Where the environment variable ``ZOMETER_DATA`` names a folder that holds ``<name>/`` (files
    as on the hub: parquet, csv or json, named after their split, in a folder of their own for
    each config), that is read instead. What the hub has sent before comes from its cache.

    Raises:
        UserError: neither can be had, or the columns are not there.

    """
    where, config = _place(name, config)
    datasets: Any = importlib.import_module("datasets")  # why here: seconds to import; untyped
    try:
        with _no_bars(datasets):
            rows = datasets.load_dataset(where, config, split=split)
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0].rstrip(".")
        raise UserError(
            f"The data set '{name}' can't be had: {first}. Let the hub be reached, or put its "
            f"files below a folder and set ZOMETER_DATA to it (<folder>/{name}/...)."
        ) from error
    if missing := set(columns) - set(rows.column_names):
        raise UserError(f"The data set in '{where}' has no column {sorted(missing)[0]!r}.")
    return [{column: row[column] for column in columns} for row in rows]


def hub_examples(
    name: str,
    columns: Sequence[str],
    make: Callable[[Sequence[dict[str, Any]]], Iterable[Example]],
    *,
    task: str,
    config: str | None = None,
    note: str | None = None,
) -> Examples:
    """Return the train and the validation split of a hub data set, each in the order of ``task``.

    The validation split is the held-back set: most collections keep their test labels.

    Raises:
        UserError: as ``hub_rows``.

    """
    train, heldback = (
        shuffled(make(hub_rows(name, split, columns, config)), task)
        for split in ("train", "validation")
    )
    return Examples(train, heldback, hub_source(name, config), note)


def labelled(rows: Iterable[Mapping[str, Any]], text: str, *fields: str) -> list[Example]:
    """Return the rows that have a label, with their column ``text`` and the other ``fields``."""
    return [
        Example(row[text].strip(), int(row["label"]), {name: row[name].strip() for name in fields})
        for row in rows
        if row["label"] is not None and row["label"] >= 0  # -1: kept secret, or no agreement
    ]


def _place(name: str, config: str | None) -> tuple[str, str | None]:
    """Return where to load from: a local folder holds its config in the path already."""
    folder = _local(name)
    if not folder.is_dir():
        return name, config
    inner = folder / config if config else folder
    return str(inner if inner.is_dir() else folder), None


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
