"""A whole run as a list of scalars (MeZO, arXiv 2305.17333, section 2.1, "storage efficiency").

The file: one line of JSON (who, with what settings, from which seed), then a record a step,
little-endian, appended as the run goes. A file cut off in mid-record loses that record alone.

- layout ``derived``: float32 coefficient of the step's one direction, whose seed is
  ``derive_seed(run_seed, step)``; the rate is the header's. 20,000 steps are 80 kB.
- layout ``listed``: float64 rate, uint16 count of terms, uint16 count of extra numbers; then
  (uint64 seed, float32 coefficient) a term, then a float32 an extra number.

A writer begins with the first and rewrites the file once, atomically, should a step not fit it.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from zo_core import methods
from zo_core.base import (
    Params,
    Replayable,
    State,
    StepInfo,
    Term,
    derive_seed,
)

FORMAT = "zometer-trajectory/2"
"""With the number of the noise stream: what was recorded with another can't be replayed."""
_DERIVED = struct.Struct("<f")
_HEAD = struct.Struct("<dHH")
_TERM = struct.Struct("<Qf")
_EXTRA = struct.Struct("<f")


@dataclass(frozen=True)
class Step:
    """One step of a run: its estimate's terms, and the learning rate."""

    terms: tuple[Term, ...]
    lr: float
    extra: tuple[float, ...] = ()

    @classmethod
    def of(cls, info: StepInfo) -> Step:
        """Return what is told of a step.

        Raises:
            ValueError: it was a first-order step, which no scalars can tell.

        """
        if info.estimate is None:
            raise ValueError("A first-order step has no estimate to log.")
        return cls(info.estimate.terms, info.lr, info.estimate.extra)


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
            ValueError: not a trajectory, or one of another format.

        """
        head, _, body = path.read_bytes().partition(b"\n")
        try:
            header = json.loads(head)
            format_, layout = header.pop("format"), header.pop("layout")
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{path} is not a trajectory file.") from None
        if format_ != FORMAT or layout not in ("derived", "listed"):
            raise ValueError(
                f"{path} is {format_}; this zometer reads {FORMAT}. Its directions are those of "
                "another noise stream: use the zometer that recorded it."
            )
        told = {f.name for f in fields(cls)} - {"steps"}
        if set(header) != told:
            raise ValueError(
                f"{path} is not a trajectory file: expected {', '.join(sorted(told))} in its "
                f"header, got {', '.join(sorted(header))}."
            )
        begun = cls(**header)
        read = begun._listed(body) if layout == "listed" else begun._derived(body)
        return replace(begun, steps=tuple(read))

    def replay_(
        self, params: Params, *, state: State = None, first: int = 0, retrace: bool = False
    ) -> State:
        """Take ``params`` from where the run began to where it ended. No forward pass is made.

        Args:
            params: moved in place.
            state: of the method before step ``first``, and taken over; where that is 0, None makes
                a new one.
            first: step that ``params`` stand before.
            retrace: go through the perturbations as well: the live bits, at the noise passes of a
                live step. Without it what restores drift by is left out.

        Returns:
            The method's state after the last step.

        Raises:
            ValueError: the method is not a zeroth-order one.

        """
        method = methods.build(self.method, **self.options)
        if not isinstance(method, Replayable):
            raise ValueError(f"A run of '{self.method}' has no trajectory to replay.")
        state = method.init(params) if state is None and first == 0 else state
        for n, step in enumerate(self.steps[first:], start=first):
            seed = derive_seed(self.run_seed, n)
            state = method.replay_(
                params,
                step.terms,
                state,
                seed=seed,
                lr=step.lr,
                extra=step.extra,
                retrace=retrace,
            )
        return state

    def fits(self, step: Step, n: int) -> bool:
        """Return whether step ``n`` can be told by one coefficient."""
        seeds = [t.seed for t in step.terms]
        told = seeds == [derive_seed(self.run_seed, n)] and step.lr == self.lr
        return told and not step.extra

    def header(self, layout: str) -> bytes:
        """Return the first line of the file."""
        fields = {"format": FORMAT, "layout": layout, **asdict(self)}
        del fields["steps"]
        return json.dumps(fields).encode() + b"\n"

    def _derived(self, body: bytes) -> Iterator[Step]:
        whole = len(body) - len(body) % _DERIVED.size
        for n, (c,) in enumerate(_DERIVED.iter_unpack(body[:whole])):
            yield Step((Term(derive_seed(self.run_seed, n), c),), self.lr)

    def _listed(self, body: bytes) -> Iterator[Step]:
        at = 0
        while at + _HEAD.size <= len(body):
            lr, terms, extra = _HEAD.unpack_from(body, at)
            middle = at + _HEAD.size + terms * _TERM.size
            end = middle + extra * _EXTRA.size
            if end > len(body):
                return
            told = tuple(Term(*t) for t in _TERM.iter_unpack(body[at + _HEAD.size : middle]))
            yield Step(told, lr, tuple(x for (x,) in _EXTRA.iter_unpack(body[middle:end])))
            at = end


class TrajectoryWriter:
    """Appends steps to a trajectory file; each is handed to the system before the next begins."""

    def __init__(self, path: Path, begun: Trajectory) -> None:
        """Create ``path``, write the header and the steps that ``begun`` has already taken.

        So a run is resumed: ``TrajectoryWriter(path, trajectory read from path)``. The file is
        replaced in one go.
        """
        self._path, self._begun = path, begun
        self._taken = len(begun.steps)
        self._listed = not all(begun.fits(step, n) for n, step in enumerate(begun.steps))
        self._file = self._anew(begun.steps)

    def append(self, info: StepInfo) -> None:
        """Log the next step."""
        step = Step.of(info)
        if not self._listed and not self._begun.fits(step, self._taken):
            self._widen()
        self._file.write(self._packed(step))
        self._taken += 1

    def _packed(self, step: Step) -> bytes:
        return _wide(step) if self._listed else _DERIVED.pack(step.terms[0].coefficient)

    def _anew(self, steps: Sequence[Step]) -> FileIO:
        """Write the file anew; a reader sees the old one or the new one, whole."""
        new = self._path.with_name(self._path.name + ".new")
        header = self._begun.header("listed" if self._listed else "derived")
        new.write_bytes(header + b"".join(map(self._packed, steps)))
        os.replace(new, self._path)
        return self._path.open("ab", buffering=0)

    def _widen(self) -> None:
        self._file.close()
        steps = Trajectory.read(self._path).steps
        self._listed = True
        self._file = self._anew(steps)

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
    head = _HEAD.pack(step.lr, len(step.terms), len(step.extra))
    terms = b"".join(_TERM.pack(t.seed, t.coefficient) for t in step.terms)
    return head + terms + b"".join(map(_EXTRA.pack, step.extra))
