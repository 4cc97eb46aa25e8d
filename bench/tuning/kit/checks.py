"""Checks of options that several tunings have."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from bench.records import UserError


def at_least_one(option: str, value: int) -> None:
    """Refuse a count below 1 with a ValueError."""
    if value < 1:
        raise ValueError(f"Option '{option}' must be 1 or more, got {value}.")


def patterns(text: str) -> list[str]:
    """Split comma separated globs."""
    return [part.strip() for part in text.split(",") if part.strip()]


def matched(globs: Sequence[str], names: Iterable[str], what: str, model: str) -> list[str]:
    """Return the dotted ``names`` that a glob matches, whole or from some dot on, in their order.

    "q_proj" matches "model.layers.0.self_attn.q_proj", and so does "layers.0.*".

    Raises:
        UserError: a glob matches none of them.

    """
    known = list(names)
    for glob in globs:
        if not any(_matches(glob, name) for name in known):
            raise _no_match(glob, known, what, model)
    return [name for name in known if any(_matches(glob, name) for glob in globs)]


def _matches(glob: str, name: str) -> bool:
    return fnmatchcase(name, glob) or fnmatchcase(name, f"*.{glob}")


def _no_match(glob: str, known: Sequence[str], what: str, model: str) -> UserError:
    tails = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(glob, [*known, *tails], n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else f" There is: {known[0]}." if known else ""
    return UserError(f"'{glob}' matches no {what} of model '{model}'.{hint}")
