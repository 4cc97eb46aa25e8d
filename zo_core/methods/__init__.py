"""Every way to fine-tune, a file each, named as in its paper. The folder is the register.

A file has ``TITLE``, ``PAPER`` and ``method(**options) -> Method``, whose options all have
defaults. Its docstring states the formula and evaluates it in plain code, as a doctest.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from zo_core import register
from zo_core.base import Method


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

    Raises:
        ValueError: no such method, no such option, or an option of the wrong type or value; the
            message names the nearest one.

    """
    known = _all()
    factory = known[register.pick("method", name, known)].method
    built: Method = register.call(f"method '{name}'", factory, options)
    return built
