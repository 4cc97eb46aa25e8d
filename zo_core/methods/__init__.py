"""Every way to fine-tune, a file each, named as in its paper. The folder is the register.

A file has ``method(**options) -> Method``, whose options all have defaults, and

- ``TITLE``, ``PAPER``: what it is called, and where it stands;
- ``BIAS``: what its estimates are the mean of, where that is not the gradient; else "";
- ``DIFFERS``: where it differs from the paper or its code, in a phrase; else "";
- ``STORAGES``, ``REQUIRES`` (where it has any): the ways to hold its state, packages it needs.

Its docstring states the formula and evaluates it in plain code, as a doctest.
"""

from __future__ import annotations

import sys
from dataclasses import fields
from types import ModuleType
from typing import Any

from zo_core import register
from zo_core.base import Method, Replayable
from zo_core.zeroth_order import Settings


def _all() -> dict[str, ModuleType]:
    return register.modules(sys.modules[__name__])


def names() -> list[str]:
    """List the methods."""
    return list(_all())


def titles() -> dict[str, tuple[str, str]]:
    """Return name -> (title, paper)."""
    return {name: (module.TITLE, module.PAPER) for name, module in _all().items()}


def build(name: str, **options: Any) -> Method:
    """Return a method by name.

    Zeroth-order methods take the fields of ``Settings`` beside their own options.

    Raises:
        ValueError: no such method, no such option, or an option of the wrong type or value; the
            message names the nearest one.

    """
    known = _all()
    factory = known[register.pick("method", name, known)].method
    what, takes = f"method '{name}'", register.defaults(factory)
    own = {k: v for k, v in options.items() if k in takes}
    register.check(what, own, takes)
    built: Method = factory(**own)
    zeroth = isinstance(built, Replayable)
    settings = {f.name: f.default for f in fields(Settings)} if zeroth else {}
    register.check(what, options, {**settings, **takes})
    rest = {k: v for k, v in options.items() if k not in takes}
    return built.configured(**rest) if isinstance(built, Replayable) and rest else built
