"""Distributions of random directions; a file each, named as in records.

Each file has ``TITLE`` and ``distribution() -> Distribution``. The laws that all of them must
pass: E[u u^T] = I on the trained entries; one seed, one direction; another tensor, another draw.
"""

from __future__ import annotations

import sys

from zo_core import register
from zo_core.base import Distribution


def names() -> list[str]:
    """List the distributions."""
    return list(register.modules(sys.modules[__name__]))


def build(name: str) -> Distribution:
    """Return a distribution by name; ValueError names the nearest one."""
    known = register.modules(sys.modules[__name__])
    built: Distribution = known[register.pick("distribution", name, known)].distribution()
    return built
