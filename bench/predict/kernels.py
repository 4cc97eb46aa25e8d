"""What a GPU allocates beside the tensors: cuBLAS's workspace and kernels' own temporaries.

Both come from torch's allocator, so they are put among a log's events and replayed with them. The
table of temporaries is ``kernels.toml``; every entry there is unverified until a GPU confirms it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import numpy as np

from bench.predict.log import ALLOC, FREE, Log
from bench.predict.replay import Events, cut_into_runs

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "_addmm_activation")


@dataclass(frozen=True)
class Temporary:
    """What one operation takes while it runs."""

    formula: str
    why: str
    source: str
    verified: bool


def _twice_first(returned: Sequence[int]) -> int:
    return 2 * returned[0]


def _all_again(returned: Sequence[int]) -> int:
    return sum(returned)


def _layer_norm_partials(returned: Sequence[int]) -> int:
    """32 float32 rows for each of weight and bias; 16-bit gradients, else half of this."""
    return sum(returned[1:]) * 32 * 4 // 2


FORMULAS: dict[str, Callable[[Sequence[int]], int]] = {
    "twice_first": _twice_first,
    "all_again": _all_again,
    "layer_norm_partials": _layer_norm_partials,
}
"""Extra bytes of an operation from the bytes of each new tensor that it returns, in order."""


@cache
def table() -> dict[str, Temporary]:
    """Return what operations take while they run, by name without overload (``aten.sort``)."""
    text = (files("bench.predict") / "kernels.toml").read_text(encoding="utf-8")
    found = {name: Temporary(**fields) for name, fields in tomllib.loads(text).items()}
    for name, entry in found.items():
        if entry.formula not in FORMULAS:
            raise ValueError(f"kernels.toml: {name} names the unknown formula {entry.formula}")
    return found


@dataclass(frozen=True)
class Extra:
    """Bytes put between two events of a log: before row ``row``, for good or for a moment."""

    row: int
    nbytes: int
    stays: bool


def workspaces(log: Log, device: int, nbytes: int) -> list[Extra]:
    """Return cuBLAS's workspaces: one from the first product on, one more from the first backward.

    The autograd engine's thread has a handle of its own.
    """
    products = {c for c, op in enumerate(log.names("op")) if _name(op)[5:] in _PRODUCTS}
    used = (log.kind == ALLOC) & (log.device == device)
    used &= np.isin(log.column("op"), list(products))
    backward = [c for c, phase in enumerate(log.names("phase")) if phase == "backward"]
    in_backward = np.isin(log.column("phase"), backward)
    rows = [np.flatnonzero(used & where) for where in (~in_backward, in_backward)]
    return [Extra(int(found[0]), nbytes, True) for found in rows if nbytes and len(found)]


def temporaries(log: Log, device: int) -> list[Extra]:
    """Return what the operations of a log took while they ran, after the tensors they returned."""
    known = table()
    ops, sizes = log.column("op"), log.nbytes
    made = (log.kind == ALLOC) & (log.device == device)
    found = []
    for code, op in enumerate(log.names("op")):
        if _name(op) not in known:
            continue
        formula = FORMULAS[known[_name(op)].formula]
        rows = np.flatnonzero(made & (ops == code))
        # What one call returns stands in consecutive rows.
        for call in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
            if len(call):
                extra = formula(sizes[call].tolist())
                found.append(Extra(int(call[-1]) + 1, extra, False))
    return sorted(found, key=lambda extra: extra.row)


def extras(log: Log, device: int, workspace: int) -> list[Extra]:
    """Return all that a GPU allocates beside a log's tensors, in the order it comes in."""
    found = [*workspaces(log, device, workspace), *temporaries(log, device)]
    return sorted((e for e in found if e.nbytes > 0), key=lambda extra: extra.row)


def events_with(log: Log, device: int, extras: Sequence[Extra]) -> Events:
    """Return the device's requests with ``extras`` among them."""
    rows, columns = [], [log.kind, log.block, log.nbytes, log.device, log.column("phase")]
    added: list[list[int]] = [[] for _ in columns]
    block = int(columns[1].max(initial=-1))
    for extra in extras:
        if extra.nbytes <= 0:
            continue
        block += 1
        # A moment's memory belongs to the operation before it, workspace to the one that follows.
        phase = int(columns[4][extra.row if extra.stays else extra.row - 1])
        for kind in (ALLOC,) if extra.stays else (ALLOC, FREE):
            rows.append(extra.row)
            for column, value in zip(
                added, (kind, block, extra.nbytes, device, phase), strict=True
            ):
                column.append(value)
    order = [np.insert(c, rows, a) for c, a in zip(columns, added, strict=True)]
    return cut_into_runs(*order, names=log.names("phase"), device_index=device)


def _name(op: str) -> str:
    """Return an operation's name without its overload: aten.sort.stable is aten.sort."""
    return ".".join(op.split(".")[:2])
