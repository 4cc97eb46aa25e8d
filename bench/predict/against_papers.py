"""What papers printed of memory, beside the prediction for the step of their code.

The step is that of ``bench.predict.reference`` under the conditions that the paper prints. Where
it prints none, those of ``_ASSUMED`` are taken, named in the row, and the row judges nothing. No
constant of the predictor comes from these cells. Several GPUs are estimated, by the rules of
``bench.predict.plan``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.models import names
from bench.predict import gpus, published
from bench.predict.plan import plan, spread
from bench.predict.predict import predict_all
from bench.predict.prediction import Prediction
from bench.predict.published import Cell, Compared
from bench.records import RunSpec, UserError, write_atomically

FILE = "published.json"
HEADINGS = ("paper", "model", "method", "printed", "predicted", "error", "verdict", "GPUs", "note")
NOTE = (
    "GiB. Predicted for the papers' own code on one A100-80GB, several GPUs by rule (estimated). "
    "Saturated: the cards were full, whatever was needed. Verdicts allow 5 % and the rounding."
)

_KINDS = {
    "mezo": "mezo",
    "zero_shot": "inference",
    "ft_adam": "ft_adam",
    "ft_sgd": "ft_sgd",
    "mezo_svrg": "mezo_svrg",
    "sparse_mezo": "sparse_mezo",
    "sparse_mezo_in_forward": "mezo",
}
_PAPERS = {"MeZO (": "MeZO", "MeZO-SVRG": "MeZO-SVRG", "Sparse-MeZO": "Sparse-MeZO"}
_ASSUMED = {"MeZO-SVRG": (64, 128), "Sparse-MeZO": (1, 400)}
"""Paper -> batch and tokens that it does not print."""
_WHY_NOT = {
    "icl": "the length of 32 demonstrations is not printed",
    "prefix": "the longest example decides, and its length is not printed",
    "lora": "rank and batch are not printed",
}
_LARGEST = {"ft_adam": ("opt-66b",), "mezo": ("opt-175b",)}
"""Sizes that Figure 4 needs beside those of Table 22."""


@dataclass(frozen=True)
class Row:
    """A published number; ``compared`` is None where nothing can be predicted for it."""

    cell: Cell
    compared: Compared | None = None
    count: int | None = None
    """Predicted number of GPUs; 0: more than any plan."""
    largest: str = ""
    """Predicted largest model, of cells that print one."""
    assumed: str = ""
    reason: str = ""

    @property
    def right(self) -> bool | None:
        """Whether prediction and print agree, in memory and in the number of GPUs.

        Full cards say nothing about memory, but how many there were is judged. None where the row
        judges nothing.
        """
        if self.assumed or self.reason or (self.cell.projected and not self.largest):
            return None
        if self.largest:
            return self.largest.lower() == self.cell.model.lower()
        right = [] if self.count is None else [self.count == self.cell.gpus]
        if self.compared is not None and self.compared.verdict != "saturated":
            right.append(self.compared.verdict == "within")
        return all(right) if right else None

    def texts(self) -> tuple[str, ...]:
        """Return the row under ``HEADINGS``."""
        cell, done = self.cell, self.compared
        method = (
            cell.method if cell.tuning in ("full", "none") else f"{cell.method} ({cell.tuning})"
        )
        shown = ("", "", "")
        if done is not None:
            shown = (f"{done.printed:.1f}", f"{100 * done.error:+.0f} %", done.verdict)
        if self.largest:
            shown = (self.largest, "", "equal" if self.right else "differs")
        printed = cell.model if self.largest else f"{cell.value:g}"
        counts = "" if not cell.gpus else str(cell.gpus)
        if self.count is not None:
            counts += f" / {self.count or '> 16'}"
        note = self.reason or (f"assumed: {self.assumed}" if self.assumed else "")
        what = cell.table if cell.table.startswith(("Table", "Figure")) else "figure"
        return (f"{_paper(cell)} {what}", cell.model, method, printed, *shown, counts, note)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data: the table's texts, and the numbers behind them."""
        told = self.compared.as_dict() if self.compared else {}
        return {
            "texts": dict(zip(HEADINGS, self.texts(), strict=True)),
            "right": self.right,
            "predicted_bytes": told.get("predicted"),
            "figure": told.get("figure", ""),
            "error": told.get("error"),
            "printed_gib": self.cell.value,
            "published_note": self.cell.note,
            "provenance": self.cell.provenance,
            "gpus_printed": self.cell.gpus,
            "gpus_predicted": self.count,
        }


Key = tuple[str, str]
"""Key of a spec, and the kind of step."""


@dataclass(frozen=True)
class Ask:
    """What is traced for a published number."""

    spec: RunSpec
    kind: str
    assumed: str = ""

    @property
    def key(self) -> Key:
        """Its name: the same for cells of the same conditions."""
        return self.spec.key, self.kind


def compared(gpu: str = "a100-80gb") -> list[Row]:
    """Return every published number with its prediction, in the order of the papers."""
    card = gpus.find(gpu)
    asked = {cell: _asked(cell) for cell in published.cells()}
    wanted = {ask.key: ask for ask in asked.values() if ask}
    for method, models in _LARGEST.items():
        more = [Ask(_spec(m, _precision(method), 1, 400), _KINDS[method]) for m in models]
        wanted |= {ask.key: ask for ask in more}
    kinds = [ask.kind for ask in wanted.values()]
    made = predict_all([ask.spec for ask in wanted.values()], reference=kinds)
    found: dict[Key, Prediction] = {}
    for key, one in zip(wanted, made, strict=True):
        if isinstance(one, UserError):
            raise one
        found[key] = one
    counts = {key: _count(one, card) for key, one in found.items()}
    return [_row(cell, ask, card, found, counts) for cell, ask in asked.items()]


def _row(
    cell: Cell,
    ask: Ask | None,
    card: gpus.Gpu,
    found: Mapping[Key, Prediction],
    counts: Mapping[Key, int],
) -> Row:
    if ask is None:
        return Row(cell, reason=_reason(cell))
    if cell.metric == "largest_model":
        held = [
            found[key].spec.model
            for key, count in counts.items()
            if key[1] == ask.kind and 0 < count <= (cell.gpus or 1)
        ]
        return Row(cell, largest=_largest(held))
    needs = spread(found[ask.key], card, cell.gpus or 1)
    assert needs is not None  # published plans have fewer GPUs than blocks
    count = counts[ask.key] if cell.gpus and not ask.assumed else None
    return Row(cell, published.compare(cell, needs), count, assumed=ask.assumed)


def write(folder: Path, rows: Sequence[Row]) -> Path:
    """Write the comparison for reports, and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    told = {"note": NOTE, "headings": HEADINGS, "rows": [row.as_dict() for row in rows]}
    write_atomically(path, json.dumps(told, indent=1) + "\n")
    return path


def _asked(cell: Cell) -> Ask | None:
    """Return what is traced; None where nothing can be predicted."""
    model = cell.model.lower()
    if cell.method not in _KINDS or cell.tuning not in ("full", "none") or model not in names():
        return None
    batch, tokens, assumed = cell.batch_size, cell.seq_len, ""
    if batch is None or tokens is None:
        batch, tokens = _ASSUMED[_paper(cell)]
        assumed = f"batch {batch} of {tokens} tokens"
    precision = cell.precision if cell.precision != "unknown" else _precision(cell.method)
    return Ask(_spec(model, precision, batch, tokens), _KINDS[cell.method], assumed)


def _spec(model: str, precision: str, batch: int, tokens: int) -> RunSpec:
    return RunSpec(
        method="mezo",  # what is traced is the reference's step
        model=model,
        task="random_tokens",
        lr=1e-6,
        dtype="float16" if precision == "fp16" else "float32",
        autocast="bfloat16" if "amp" in precision else None,  # of float16's size
        device="cuda",
        batch_size=batch,
        seq_len=tokens,
        steps=2,
    )


def _precision(method: str) -> str:
    return "fp32+amp_fp16" if method.startswith("ft") else "fp16"


def _count(found: Prediction, card: gpus.Gpu) -> int:
    made = plan(found, card, steps=1)
    return made.fit.count if made else 0


def _largest(held: Sequence[str]) -> str:
    """Return the largest OPT among models."""
    sizes = {m: float(m.removeprefix("opt-").removesuffix("b")) for m in held if m[:4] == "opt-"}
    return max(sizes, key=lambda m: sizes[m], default="none")


def _paper(cell: Cell) -> str:
    return next(short for begin, short in _PAPERS.items() if cell.paper.startswith(begin))


def _reason(cell: Cell) -> str:
    for what, why in _WHY_NOT.items():
        if what in (cell.method, cell.tuning):
            return why
    return f"{cell.model} is not in the catalogue"
