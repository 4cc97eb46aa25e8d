"""The tables: one file each, found by looking into this folder.

To add one, drop a file here that holds

- ``TITLE``: its heading; ``ORDER``: where it comes among the others, small first (below
  10: before the figures);
- ``SCOPE``: ``section`` (once for each group of runs), ``page`` (once, after the sections) or
  ``appendix`` (once, at the end);
- ``FOLD_ABOVE``: with more rows than this it is shown folded; None: never;
- ``rows(tables) -> Table``: the table; one without rows is left out.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Literal, Protocol, cast

from reports.load import Tables
from reports.table import Table


class TableFile(Protocol):
    """What a file of this folder holds."""

    TITLE: str
    ORDER: int
    SCOPE: Literal["section", "page", "appendix"]
    FOLD_ABOVE: int | None

    def rows(self, tables: Tables) -> Table:
        """Return the table."""
        ...


def discover(folders: Iterable[str] | None = None) -> dict[str, TableFile]:
    """Return the tables by name, in the order in which they appear.

    Raises:
        ImportError: a file can't be imported, or lacks one of the parts.

    """
    found: dict[str, TableFile] = {}
    for info in pkgutil.iter_modules(__path__ if folders is None else list(folders)):
        module = importlib.import_module(f"{__name__}.{info.name}")
        parts = ("TITLE", "ORDER", "SCOPE", "FOLD_ABOVE", "rows")
        if lacking := [part for part in parts if not hasattr(module, part)]:
            raise ImportError(f"reports/tables/{info.name}.py lacks {', '.join(lacking)}.")
        found[info.name] = cast(TableFile, module)  # a module with these parts is a TableFile
    return dict(sorted(found.items(), key=lambda item: (item[1].ORDER, item[0])))
