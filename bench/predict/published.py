"""Published memory figures beside predicted ones: MeZO, MeZO-SVRG and Sparse-MeZO.

``published.csv`` holds the rows of the project's reference table that state memory or the largest
model that fits, without those recalled from memory; its columns say which quantity each paper
read (NVML, torch's reserved memory, unknown), how sure the row is, and what to beware of. Rules:

* a cell is compared with the figure that its paper read, never with another;
* an integer in print is what lies half a unit around it; 5 % is allowed on top;
* Sparse-MeZO prints GB of unknown base: the nearer of GB and GiB counts;
* a saturated cell (all cards full) says nothing about what was needed; it is a bound: the least
  that a prediction can work in must be no more.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from bench.predict.figures import Figures

GIB, GB = 1 << 30, 10**9
TOLERANCE = 0.05

Verdict = Literal["within", "low", "high", "saturated"]


@dataclass(frozen=True)
class Cell:
    """One published number."""

    paper: str
    table: str
    model: str
    method: str
    tuning: str
    task: str
    metric: str
    """``peak_memory_gib``, or ``largest_model`` (1e9 parameters)."""
    value: float
    gpus: int | None
    gpu: str
    batch_size: int | None
    seq_len: int | None
    """The mean length of MeZO's rows; the longest example decides the peak."""
    precision: str
    memory_metric: str
    provenance: str
    note: str

    @property
    def saturated(self) -> bool:
        """The cards were full: the number is their size."""
        return "saturated" in self.note

    @property
    def projected(self) -> bool:
        """The authors did not run it."""
        return "PROJECTED" in self.note

    @property
    def base_unknown(self) -> bool:
        """Printed GB may be 10**9 or 2**30 bytes."""
        return "base not established" in self.note

    @property
    def half_unit(self) -> float:
        """How far the true value may lie from the printed one, in its unit."""
        return 0.5 if self.value == int(self.value) else 0.05

    @property
    def tolerance(self) -> float:
        """How far a prediction may lie from the printed value, as a share of it."""
        return self.half_unit / self.value + TOLERANCE


@dataclass(frozen=True)
class Compared:
    """A published number and the prediction for it."""

    cell: Cell
    predicted: int
    """Bytes, of the figure that the paper read, summed over devices."""
    figure: str
    printed: float
    """The prediction in the cell's unit."""
    error: float
    """Prediction against print: -0.04 is 4 % less."""
    verdict: Verdict

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, with the cell's."""
        fields = asdict(self)
        return {**fields.pop("cell"), "saturated": self.cell.saturated, **fields}


@cache
def cells() -> tuple[Cell, ...]:
    """Return every packaged number, in the order of the papers.

    >>> [c.value for c in cells() if (c.table, c.method) == ("Table 22", "mezo")]
    [4.0, 7.0, 14.0, 26.0, 58.0, 128.0]

    """
    text = (files("bench.predict") / "published.csv").read_text(encoding="utf-8")
    found = []
    for row in csv.DictReader(text.splitlines()):
        numbers = {k: int(row.pop(k) or 0) or None for k in ("gpus", "batch_size", "seq_len")}
        value = float(row.pop("value"))
        found.append(Cell(**row, **numbers, value=value))  # type: ignore[arg-type]  # by name
    return tuple(found)


def compare(cell: Cell, needs: Sequence[Figures]) -> Compared:
    """Compare a peak-memory cell with the figures of its devices."""
    figure, read = _FIGURES.get(cell.memory_metric, _FIGURES["nvidia_smi"])
    predicted = sum(read(each) for each in needs)
    bases = (GIB, GB) if cell.base_unknown else (GIB,)
    printed = min((predicted / base for base in bases), key=lambda v: abs(v - cell.value))
    error = printed / cell.value - 1
    needed = sum(each.least + each.outside.expected for each in needs) / GIB
    return Compared(cell, predicted, figure, printed, error, _verdict(cell, error, needed))


_FIGURES: dict[str, tuple[str, Callable[[Figures], int]]] = {
    "nvidia_smi": ("process", lambda figures: figures.process.expected),
    "nvml_device": ("process", lambda figures: figures.process.expected),
    "torch_reserved": ("reserved", lambda figures: figures.reserved),
    "torch_allocated": ("allocated", lambda figures: figures.allocated),
    # Sparse-MeZO does not say; users look at nvidia-smi.
    "unknown": ("process", lambda figures: figures.process.expected),
}


def _verdict(cell: Cell, error: float, needed: float) -> Verdict:
    if cell.saturated:
        # What could not have run on full cards is too high, whatever else fills them.
        return "saturated" if needed <= cell.value + cell.half_unit else "high"
    if abs(error) <= cell.tolerance:
        return "within"
    return "high" if error > 0 else "low"
