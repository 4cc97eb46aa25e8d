"""Where the data shipped with zometer lies: the suites and the model catalogue."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from bench.records import UserError


def suites_folder() -> Path:
    """Return the folder of the built-in suites: of the checkout if there is one, else installed.

    Raises:
        UserError: neither exists.

    """
    checkout = Path(__file__).resolve().parent.parent / "suites"
    installed = Path(sysconfig.get_path("data")) / "share" / "zometer" / "suites"
    for folder in (checkout, installed):
        if folder.is_dir():
            return folder
    raise UserError(f"No built-in suites in {checkout} or {installed}; reinstall zometer.", 3)
