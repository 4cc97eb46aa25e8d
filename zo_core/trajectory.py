"""A whole run as a list of scalars (MeZO, arXiv 2305.17333, section 2.1, "storage efficiency").

The file: one line of JSON (who, with what settings, from which seed), then a record a step,
little-endian, appended as the run goes. A file cut off in mid-record loses that record alone.

- layout ``derived``: float32 coefficient of the step's one direction, whose seed is
  ``derive_seed(run_seed, step)``; the rate is the header's. 20,000 steps are 80 kB.
- layout ``general``: float64 rate, uint16 count, then (uint64 seed, float32 coefficient) a term.

A writer begins with the first and rewrites the file once, atomically, should a step not fit it.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from zo_core import methods
from zo_core.base import GradientEstimate, Params, Term, derive_seed
from zo_core.zeroth_order import ZerothOrder

FORMAT = "zometer-trajectory/1"
_DERIVED = struct.Struct("<f")
_HEAD = struct.Struct("<dH")
_TERM = struct.Struct("<Qf")


@dataclass(frozen=True)
class Step:
    """One step of a run: its estimate's terms, and the learning rate."""

    terms: tuple[Term, ...]
    lr: float


@dataclass(frozen=True)
class Trajectory:
    """What a run did: enough to rebuild its weights from the initial ones without a forward."""

    method: str
    options: dict[str, Any]
    lr: float
    run_seed: int
    steps: tuple[Step, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Trajectory:
        """Read a trajectory file; an unfinished last record is left out.

        Raises:
            ValueError: not a trajectory, or one of a newer format.

        """
        head, _, body = path.read_bytes().partition(b"\n")
        try:
            header = json.loads(head)
            format_, layout = header.pop("format"), header.pop("layout")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} is not a trajectory file.") from None
        if format_ != FORMAT or layout not in ("derived", "general"):
            raise ValueError(f"{path} is {format_}; this zometer reads {FORMAT}. Upgrade zometer.")
        begun = cls(**header)
        read = begun._general(body) if layout == "general" else begun._derived(body)
        return cls(**header, steps=tuple(read))

    def replay_(self, params: Params) -> None:
        """Take ``params`` from where the run began to where it ended. No forward pass is made.

        Raises:
            ValueError: the method is not a zeroth-order one.

        """
        method = methods.build(self.method, **self.options)
        if not isinstance(method, ZerothOrder):
            raise ValueError(f"A run of '{self.method}' has no trajectory to replay.")
        state = method.init(params)
        for n, step in enumerate(self.steps):
            seed = derive_seed(self.run_seed, n)
            state = method.replay_(params, step.terms, state, seed=seed, lr=step.lr)

    def fits(self, step: Step, n: int) -> bool:
        """Return whether step ``n`` can be told by one coefficient."""
        seeds = [t.seed for t in step.terms]
        return seeds == [derive_seed(self.run_seed, n)] and step.lr == self.lr

    def header(self, layout: str) -> bytes:
        """Return the first line of the file."""
        fields = {"format": FORMAT, "layout": layout, **asdict(self)}
        del fields["steps"]
        return json.dumps(fields).encode() + b"\n"

    def _derived(self, body: bytes) -> Iterator[Step]:
        whole = len(body) - len(body) % _DERIVED.size
        for n, (c,) in enumerate(_DERIVED.iter_unpack(body[:whole])):
            yield Step((Term(derive_seed(self.run_seed, n), c),), self.lr)

    def _general(self, body: bytes) -> Iterator[Step]:
        at = 0
        while at + _HEAD.size <= len(body):
            lr, count = _HEAD.unpack_from(body, at)
            at += _HEAD.size
            end = at + count * _TERM.size
            if end > len(body):
                return
            yield Step(tuple(Term(*t) for t in _TERM.iter_unpack(body[at:end])), lr)
            at = end


class TrajectoryWriter:
    """Appends steps to a trajectory file; each is handed to the system before the next begins."""

    def __init__(self, path: Path, begun: Trajectory) -> None:
        """Create ``path`` and write the header; ``begun`` has no steps yet."""
        self._path, self._begun = path, begun
        self._taken = 0
        self._general = False
        self._file = path.open("wb", buffering=0)
        self._file.write(begun.header("derived"))

    def append(self, estimate: GradientEstimate, lr: float) -> None:
        """Log the next step."""
        step = Step(estimate.terms, lr)
        if not self._general and not self._begun.fits(step, self._taken):
            self._widen()
        self._file.write(
            _wide(step) if self._general else _DERIVED.pack(step.terms[0].coefficient)
        )
        self._taken += 1

    def _widen(self) -> None:
        """Rewrite the file in the general layout; a reader sees the one or the other, whole."""
        self._file.close()
        wider = self._path.with_name(self._path.name + ".new")
        steps = Trajectory.read(self._path).steps
        wider.write_bytes(self._begun.header("general") + b"".join(map(_wide, steps)))
        os.replace(wider, self._path)
        self._file = self._path.open("ab", buffering=0)
        self._general = True

    def __enter__(self) -> TrajectoryWriter:
        """Return the writer."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        self._file.close()


def _wide(step: Step) -> bytes:
    terms = b"".join(_TERM.pack(t.seed, t.coefficient) for t in step.terms)
    return _HEAD.pack(step.lr, len(step.terms)) + terms
