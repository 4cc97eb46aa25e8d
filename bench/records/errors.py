"""The one error a user can cause, and how it names what was meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right. Printed as one line, without a traceback.

    Args:
        message: what was expected, what came, what to do.
        exit_code: 2 usage or configuration (the default), 3 environment or measurement invalid,
            5 baseline missing.

    """

    def __init__(self, message: str, exit_code: int = 2) -> None:
        """Keep the message and the exit code."""
        super().__init__(message)
        self.exit_code = exit_code


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that is not one of ``known``, with the nearest one named.

    >>> print(unknown("method", "mezzo", ["mezo", "ft_sgd"]))
    Unknown method 'mezzo'. Did you mean 'mezo'? There are: ft_sgd, mezo.

    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UserError(f"Unknown {what} '{name}'.{hint} There are: {', '.join(names)}.")
