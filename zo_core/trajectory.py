"""A whole run as a list of scalars (MeZO, arXiv 2305.17333, section 2.1, "storage efficiency").

The file: one line of JSON (who, with what settings, from which seed), then one little-endian
float32 a step: the coefficient of the step's one direction, whose seed is
``derive_seed(run_seed, step)``. It is appended to as the run goes; a file that was cut off in
mid-record loses that record alone. 20,000 steps are 80 kB.

Methods whose steps are not one term of a derived seed need more columns; the header names them,
so that an older reader refuses such a file instead of misreading it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from zo_core import methods
from zo_core.base import GradientEstimate, Params, Term, derive_seed
from zo_core.zeroth_order import ZerothOrder

FORMAT = "zometer-trajectory/1"
_RECORD = struct.Struct("<f")


@dataclass(frozen=True)
class Trajectory:
    """What a run did: enough to rebuild its weights from the initial ones without a forward."""

    method: str
    options: dict[str, Any]
    lr: float
    run_seed: int
    coefficients: tuple[float, ...] = ()
    format: str = FORMAT
    columns: tuple[str, ...] = field(default=("coefficient:float32",))

    @classmethod
    def read(cls, path: Path) -> Trajectory:
        """Read a trajectory file; an unfinished last record is left out.

        Raises:
            ValueError: not a trajectory, or one of a newer format.

        """
        head, found, body = path.read_bytes().partition(b"\n")
        try:
            header = json.loads(head) if found else None
        except ValueError:
            header = None
        if not isinstance(header, dict) or "format" not in header:
            raise ValueError(f"{path} is not a trajectory file.")
        columns = tuple(header.pop("columns", ()))
        if header["format"] != FORMAT or columns != cls.__dataclass_fields__["columns"].default:
            raise ValueError(
                f"{path} is {header['format']} with columns {list(columns)}; this version reads "
                f"{FORMAT} with one coefficient a step. Upgrade zometer."
            )
        whole = len(body) - len(body) % _RECORD.size
        coefficients = tuple(c for (c,) in _RECORD.iter_unpack(body[:whole]))
        return cls(**header, columns=columns, coefficients=coefficients)

    def __iter__(self) -> Iterator[Term]:
        """Walk the steps: the direction's seed and its coefficient."""
        for step, c in enumerate(self.coefficients):
            yield Term(derive_seed(self.run_seed, step), c)

    def replay_(self, params: Params) -> None:
        """Take ``params`` from where the run began to where it ended. No forward pass is made.

        Raises:
            ValueError: the method is not a zeroth-order one.

        """
        method = methods.build(self.method, **self.options)
        if not isinstance(method, ZerothOrder):
            raise ValueError(f"A run of '{self.method}' has no trajectory to replay.")
        looked, moved = method.init(params)
        with torch.no_grad():
            for term in self:
                law, looked = method.estimator.directions(params, term.seed, looked)
                estimate = GradientEstimate(law, (term,), ())
                moved = method.update.apply_(params, estimate, moved, self.lr)


class TrajectoryWriter:
    """Appends steps to a trajectory file; each is handed to the system before the next begins."""

    def __init__(self, path: Path, header: Trajectory) -> None:
        """Create ``path`` and write the header."""
        self._run_seed = header.run_seed
        self._step = 0
        text = asdict(header)
        del text["coefficients"]
        self._file = path.open("wb", buffering=0)
        self._file.write(json.dumps(text).encode() + b"\n")

    def append(self, estimate: GradientEstimate) -> None:
        """Log the next step.

        Raises:
            ValueError: the estimate is not one term of this step's derived seed.

        """
        seeds = [t.seed for t in estimate.terms]
        if seeds != [derive_seed(self._run_seed, self._step)]:
            raise ValueError(f"Step {self._step} does not fit the columns of {FORMAT}.")
        self._file.write(_RECORD.pack(estimate.terms[0].coefficient))
        self._step += 1

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
