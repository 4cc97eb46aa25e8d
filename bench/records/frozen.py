"""How every part of a record is read: whole or refused, and never changed."""

from __future__ import annotations

from pydantic import ConfigDict

FROZEN = ConfigDict(
    frozen=True,
    extra="forbid",
    protected_namespaces=(),
    use_attribute_docstrings=True,  # the words below a field are its line in docs/records.md
    allow_inf_nan=False,  # JSON has neither: what is written can be read
)
