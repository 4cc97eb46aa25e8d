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
    root = Path(__file__).resolve().parent.parent
    installed = Path("share") / "zometer" / "suites"
    user = sysconfig.get_path("data", sysconfig.get_preferred_scheme("user"))
    places = [root / "suites"]
    places += [Path(p) / installed for p in (sysconfig.get_path("data"), user, root)]
    for folder in places:
        if (folder / "models").is_dir():  # a stranger's `suites` is not ours
            return folder
    looked = ", ".join(str(p) for p in places)
    raise UserError(f"No built-in suites (looked in {looked}); reinstall zometer.", 3)
