"""Flags of runs as they stand in tables: a symbol in the row, the words on hover and below."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.records import Flag, RunRecord

SEVERITIES = ("invalid", "suspect", "info")
"""Gravest first."""
SYMBOLS = {"invalid": "⊘", "suspect": "⚠", "info": "⚑"}
"""Severity -> its symbol. They differ in shape, not in colour alone."""
WORDS = {
    "invalid": "must not be used: kept and shown, and left out of what is compared",
    "suspect": "look again before it is used",
    "info": "a remark",
}
"""Severity -> what it asks of the reader."""


@dataclass(frozen=True)
class Doubt:
    """A flag that some runs of a row carry."""

    name: str
    severity: str
    texts: tuple[str, ...]
    """What the flag says, in each wording once."""
    carried: int
    """Runs that carry it."""
    of: int
    """Runs of the row."""

    @property
    def symbol(self) -> str:
        """The symbol of its severity."""
        return SYMBOLS[self.severity]

    @property
    def short(self) -> str:
        """Symbol and name, with how many runs carry it where the row has several.

        >>> Doubt("throttled", "suspect", ("hot",), 1, 3).short
        '⚠ throttled (1 of 3 runs)'

        """
        share = f" ({self.carried} of {self.of} runs)" if self.of > 1 else ""
        return f"{self.symbol} {self.name}{share}"

    @property
    def raw(self) -> str:
        """Severity and name, for CSV files."""
        share = f" {self.carried}/{self.of}" if self.of > 1 else ""
        return f"{self.severity}:{self.name}{share}"


def doubts(records: Sequence[RunRecord]) -> tuple[Doubt, ...]:
    """Return what some runs are flagged with, gravest first."""
    carried: dict[tuple[str, str], list[Flag]] = {}
    runs: dict[tuple[str, str], int] = {}
    for record in records:
        own = {(flag.severity, flag.name) for flag in record.flags}
        for key in own:
            runs[key] = runs.get(key, 0) + 1
        for flag in record.flags:
            carried.setdefault((flag.severity, flag.name), []).append(flag)
    made = [
        Doubt(name, severity, tuple(dict.fromkeys(f.text for f in flags)),
              runs[severity, name], len(records))
        for (severity, name), flags in carried.items()
    ]  # fmt: skip
    return tuple(sorted(made, key=lambda d: (SEVERITIES.index(d.severity), d.name)))


def in_short(several: Sequence[Doubt]) -> list[str]:
    """Return doubts by name, gravest first; several remarks are counted alone."""
    remarks = [doubt for doubt in several if doubt.severity == "info"]
    told = [doubt.short for doubt in several if doubt.severity != "info"]
    if len(remarks) > 1:
        return [*told, f"{SYMBOLS['info']} {len(remarks)} remarks"]
    return [*told, *(doubt.short for doubt in remarks)]


def grave(several: Iterable[Doubt]) -> list[Doubt]:
    """Return those that a row must be marked with: all but remarks."""
    return [doubt for doubt in several if doubt.severity != "info"]
