"""What papers printed of memory, beside the prediction for the step of their code.

The step is that of ``bench.predict.reference`` under the conditions that the paper prints. Where
it prints none, those of ``_ASSUMED`` are taken, named in the row, and the row judges nothing. No
constant of the predictor comes from these cells. Several GPUs are traced: MeZO as a layer
pipeline, FT with FSDP2 in 16-bit mixed precision, where the paper's was FSDP1. How many GPUs it
takes is judged by traces as well: of the count found, and of one below that misses by little.
Tight counts, since that is what full cards are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.models import names
from bench.predict import gpus, published
from bench.predict.parallel import parallel_for
from bench.predict.plan import Plan, missed, plan
from bench.predict.predict import predict_all
from bench.predict.prediction import Prediction
from bench.predict.published import Cell, Compared
from bench.records import RunSpec, UserError, write_atomically

FILE = "published.json"
HEADINGS = ("paper", "model", "method", "printed", "predicted", "error", "verdict", "GPUs", "note")
NOTE = (
    "GiB. Predicted for the papers' own code on A100-80GB; several GPUs traced, too. "
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
_METHODS = {"ft_adam": "ft_adamw", "ft_sgd": "ft_sgd"}
"""Kind of step -> the method that it is here; "mezo" for all without a backward pass."""
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
Over = tuple[Key, int]
"""What is traced, and over how many GPUs."""


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
        kind = _KINDS[method]
        more = [Ask(_spec(m, kind, _precision(method), 1, 400), kind) for m in models]
        wanted |= {ask.key: ask for ask in more}
    found = _traced(wanted, [(key, 1) for key in wanted])
    several = [
        (ask.key, cell.gpus)
        for cell, ask in asked.items()
        if ask and cell.gpus and cell.gpus > 1 and cell.metric != "largest_model"
    ]
    plans: dict[Key, Plan | None] = {}
    while several or not plans:
        found |= _traced(wanted, several)
        plans = {key: _plan(key, found, card) for key in wanted}
        several = [
            (key, n)
            for key, made in plans.items()
            for n in (made.doubtful if made else _missed(key, found, card))
        ]
    counts = {key: made.fit.count if made else 0 for key, made in plans.items()}
    return [_row(cell, ask, card, found, counts) for cell, ask in asked.items()]


def _traced(wanted: Mapping[Key, Ask], over: Iterable[Over]) -> dict[Over, Prediction]:
    """Trace steps over so many devices each."""
    each = list(dict.fromkeys(over))
    asks = [wanted[key] for key, _ in each]
    made = predict_all(
        [ask.spec for ask in asks],
        reference=[ask.kind for ask in asks],
        parallel=[parallel_for(wanted[key].spec, count) for key, count in each],
    )
    found = {}
    for one, prediction in zip(each, made, strict=True):
        if isinstance(prediction, UserError):
            raise prediction
        found[one] = prediction
    return found


def _plan(key: Key, found: Mapping[Over, Prediction], card: gpus.Gpu) -> Plan | None:
    several = {n: one for (of, n), one in found.items() if of == key and n > 1}
    return plan(found[key, 1], card, steps=1, traced=several, tight=True)


def _missed(key: Key, found: Mapping[Over, Prediction], card: gpus.Gpu) -> list[int]:
    most = missed(found[key, 1], [card])
    return [most] if most and (key, most) not in found else []


def _row(
    cell: Cell,
    ask: Ask | None,
    card: gpus.Gpu,
    found: Mapping[Over, Prediction],
    counts: Mapping[Key, int],
) -> Row:
    if ask is None:
        return Row(cell, reason=_reason(cell))
    if cell.metric == "largest_model":
        held = [
            found[key, 1].spec.model
            for key, count in counts.items()
            if key[1] == ask.kind and 0 < count <= (cell.gpus or 1)
        ]
        return Row(cell, largest=_largest(held))
    needs = found[ask.key, cell.gpus or 1].on(card)
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
    kind = _KINDS[cell.method]
    return Ask(_spec(model, kind, precision, batch, tokens), kind, assumed)


def _spec(model: str, kind: str, precision: str, batch: int, tokens: int) -> RunSpec:
    return RunSpec(
        method=_METHODS.get(kind, "mezo"),  # what is traced is the reference's step
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
