"""The record of ``zometer bench prediction``: predicted memory beside the real, run by run.

Live bytes of torch's CPU allocator, traced on fake tensors and seen by torch's profiler in the
same run for real. Bytes are raw; what counts as equal is defined here, once, for the command line
and for the report.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel

from bench.records.frozen import FROZEN
from bench.records.keyed import in_order, read_keyed, write_keyed
from bench.records.record import Environment
from bench.records.spec import Dtype

PREDICTION_CHECK = "prediction_check.json"
TOLERANCE_BYTES = 4096
TRAINING = "training"
"""Variant of the plain grid: steps on random tokens."""

Verdict = Literal["agrees", "known", "differs", "unable"]
"""Of one run: equal in every phase; or where it is not, as listed and no farther; or farther; or
it could not be traced or could not run."""
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)

_OUTSIDE = "run"  # outside of all phases is the end, when everything is freed


class _Frozen(BaseModel):
    model_config = FROZEN


class CheckCell(_Frozen):
    """One run that is compared."""

    variant: str = TRAINING
    """What else is set, or which task it is: ``training`` on random tokens, ``generation``, ..."""
    method: str
    """As in a suite."""
    family: str
    """opt, roberta or llama."""
    dtype: Dtype
    """Of weights and arithmetic."""
    attention: Literal["sdpa", "eager"]
    """Who computes it: torch's fused kernels, or the plain formula."""
    tuning: str
    """What is trained."""

    @property
    def name(self) -> str:
        """Return it in words, the variant first where there is one."""
        words = [self.method, self.family, self.dtype, self.attention, self.tuning]
        return " ".join(words if self.variant == TRAINING else [self.variant, *words])


class CheckedCell(_Frozen):
    """One run with what was found."""

    cell: CheckCell
    """Which run."""
    model: str = ""
    """Whose widths and vocabulary it has; the depth is in the record."""
    traced: dict[str, int] = {}
    """Most live bytes while each phase was innermost, traced."""
    real: dict[str, int] = {}
    """The same of the real run, as torch's profiler saw every allocation and free."""
    seconds: float
    """Wall time of both."""
    reason: str | None = None
    """Why it could not be compared; null where it was."""

    @property
    def peak_bytes(self) -> int:
        """Return the real peak of the run."""
        return max(self.real.values(), default=0)

    @property
    def error_bytes(self) -> int:
        """Return traced minus real peak of the run."""
        return max(self.traced.values(), default=0) - self.peak_bytes

    def errors(self) -> dict[str, int]:
        """Return traced minus real peak of each phase."""
        phases = [p for p in dict.fromkeys([*self.real, *self.traced]) if p != _OUTSIDE]
        return {p: self.traced.get(p, 0) - self.real.get(p, 0) for p in phases}

    def beyond(self) -> dict[str, int]:
        """Return the errors of phases that are beyond the tolerance."""
        return {p: e for p, e in self.errors().items() if abs(e) > TOLERANCE_BYTES}


class KnownDifference(_Frozen):
    """Where the two are known to differ, by how much at most, and why. An empty list is any."""

    why: str
    """The reason, in a sentence."""
    phases: list[str]
    """Phases it is seen in."""
    least_bytes: int
    """Lowest error, traced minus real: below it is no known difference."""
    most_bytes: int
    """Highest error."""
    variants: list[str] = []
    """Which runs it is of."""
    methods: list[str] = []
    """Which runs it is of."""
    families: list[str] = []
    """Which runs it is of."""
    dtypes: list[str] = []
    """Which runs it is of."""
    attention: list[str] = []
    """Which runs it is of."""
    tunings: list[str] = []
    """Which runs it is of."""

    def of(self, cell: CheckCell) -> bool:
        """Whether it may be seen in a run."""
        asked = (
            (self.variants, cell.variant),
            (self.methods, cell.method),
            (self.families, cell.family),
            (self.dtypes, cell.dtype),
            (self.attention, cell.attention),
            (self.tunings, cell.tuning),
        )
        return all(not names or name in names for names, name in asked)

    def explains(self, cell: CheckCell, phase: str, error_bytes: int) -> bool:
        """Whether an error of a phase is this difference."""
        within = self.least_bytes <= error_bytes <= self.most_bytes
        return within and phase in self.phases and self.of(cell)


class PredictionCheck(_Frozen):
    """A grid of runs, whole. Written once, atomically, and never edited."""

    schema_version: Literal[1] = 1
    """Version of this schema."""
    kind: Literal["prediction_check"] = "prediction_check"
    """Tells it from other records."""
    key: str
    """The grid's name."""
    started_at: str
    """UTC, ISO 8601: of the last command that worked on it."""
    wall_seconds: float
    """Of comparing, all runs summed up."""
    environment: Environment
    """Where."""
    layers: int
    """Blocks of every model."""
    variants: dict[str, str]
    """Name of each variant, and what it is."""
    left_out: dict[str, str]
    """What the grid does not have, and why."""
    known: list[KnownDifference]
    """The known differences that it was judged by."""
    cells: list[CheckedCell]
    """Every run, in the order of the grid."""

    def verdict(self, one: CheckedCell) -> Verdict:
        """Return what came of a run."""
        if one.reason is not None:
            return "unable"
        beyond = one.beyond()
        if not beyond:
            return "agrees"
        return "differs" if self.unexplained(one) else "known"

    def unexplained(self, one: CheckedCell) -> dict[str, int]:
        """Return the errors of phases that no known difference explains."""
        return {
            phase: error
            for phase, error in one.beyond().items()
            if not any(k.explains(one.cell, phase, error) for k in self.known)
        }

    def explained(self, known: KnownDifference) -> Iterator[tuple[CheckedCell, str, int]]:
        """Yield run, phase and error of all that a known difference explains."""
        for one in self.cells:
            for phase, error in one.beyond().items():
                if known.explains(one.cell, phase, error):
                    yield one, phase, error

    def unneeded(self) -> list[KnownDifference]:
        """Return the known differences that no run shows, though some that it is of were made."""
        made = [one.cell for one in self.cells if one.reason is None]
        return [
            known
            for known in self.known
            if any(map(known.of, made)) and not any(self.explained(known))
        ]

    def counts(self) -> dict[Verdict, int]:
        """Return how many runs have each verdict."""
        verdicts = [self.verdict(one) for one in self.cells]
        return {verdict: verdicts.count(verdict) for verdict in VERDICTS}


def key_of(cells: Iterable[CheckCell]) -> str:
    """Return the name of a grid on disk: its size, and a digest of its runs."""
    names = [cell.name for cell in cells]
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]
    return f"prediction--{len(names)}-runs--{digest}"


def write_prediction_check(folder: Path, record: PredictionCheck) -> Path:
    """Write ``record`` into a folder of its key below ``folder``, and return the file."""
    return write_keyed(folder, PREDICTION_CHECK, record.key, record)


def read_prediction_checks(folder: Path) -> list[PredictionCheck]:
    """Read every record of this kind below ``folder``, in the order they began; often none.

    Raises:
        UserError: one can't be read.

    """
    return in_order([read_prediction_check(p) for p in sorted(folder.rglob(PREDICTION_CHECK))])


def read_prediction_check(path: Path) -> PredictionCheck:
    """Read one record.

    Raises:
        UserError: it can't be read.

    """
    return read_keyed(path, PredictionCheck, "bench prediction")
