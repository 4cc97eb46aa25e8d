"""The folder is the register: a part is known by the name of its file."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any


def modules(package: ModuleType) -> dict[str, ModuleType]:
    """Import and return every module of ``package``, by file name. An import error is raised."""
    found = sorted(m.name for m in pkgutil.iter_modules(package.__path__))
    return {name: importlib.import_module(f"{package.__name__}.{name}") for name in found}


def pick(what: str, name: str, known: Iterable[str]) -> str:
    """Return ``name`` if it is one of ``known``.

    >>> pick("method", "mezzo", ["mezo", "ft_sgd"])
    Traceback (most recent call last):
    ...
    ValueError: Unknown method 'mezzo'. Did you mean 'mezo'? There are: ft_sgd, mezo.
    """
    names = sorted(known)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    listed = ", ".join(names) if names else "none"
    raise ValueError(f"Unknown {what} '{name}'.{hint} There are: {listed}.")


def call(what: str, factory: Callable[..., Any], options: dict[str, Any]) -> Any:
    """Call ``factory`` with ``options``, refusing those it does not have, or of the wrong type."""
    check(what, options, defaults(factory))
    return factory(**options)


def defaults(factory: Callable[..., Any]) -> dict[str, Any]:
    """Return the options of ``factory`` and their defaults."""
    return {k: p.default for k, p in inspect.signature(factory).parameters.items()}


def check(what: str, options: dict[str, Any], known: dict[str, Any]) -> None:
    """Refuse options that are not among ``known`` (with their defaults), or of the wrong type.

    Types are those of the defaults: an int passes for a float, a bool for nothing but a bool.
    """
    for name, value in options.items():
        default = known[pick(f"option of {what}:", name, known)]
        allowed = (int, float) if isinstance(default, float) else (type(default),)
        if type(value) not in allowed:
            raise ValueError(
                f"Option '{name}' of {what} must be a {type(default).__name__} "
                f"(default {default!r}), got {value!r}."
            )
