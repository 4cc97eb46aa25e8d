"""What a traced step allocates and frees, in order: recorded once, replayed by any allocator.

One row an event. A block is what one allocation returns and one free gives back; its size is in
bytes as asked for, before any rounding of an allocator. Stands on numpy alone, so that a replay
needs no torch.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALLOC, FREE = 1, -1

COMPONENTS = (
    "weights",
    "gradients",
    "state",
    "activations",
    "logits",
    "noise",
    "inputs",
    "other",
)
"""What a block is for. ``state`` is the method's and the optimiser's, ``noise`` is scratch of
perturbing and updating."""

OUTSIDE_BLOCKS = "bytes of weights outside of blocks"
"""Among the facts: of embeddings, a head, the last norm."""

_NAMED = ("phase", "op", "module", "component")
_NUMBERS = ("kind", "block", "nbytes", "device")


@dataclass
class Work:
    """Arithmetic and traffic of one phase: what a roofline needs."""

    flops: dict[str, int] = field(default_factory=dict)
    """Floating-point operations of matrix products and attention, by dtype ("float32", ...)."""
    bytes: int = 0
    """Bytes read and written by operations, each tensor once an operation."""
    ops: int = 0
    """Kernels launched: operations that are not mere views."""

    def add(self, dtype: str, flops: int, nbytes: int) -> None:
        """Count one operation."""
        if flops:
            self.flops[dtype] = self.flops.get(dtype, 0) + flops
        self.bytes += nbytes
        self.ops += 1


class _Names:
    """Strings kept once, told apart by number."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names = list(names)
        self._codes = {name: code for code, name in enumerate(self.names)}

    def code(self, name: str) -> int:
        if name not in self._codes:
            self._codes[name] = len(self.names)
            self.names.append(name)
        return self._codes[name]


@dataclass
class Log:
    """Allocations and frees in order, and the work of each phase.

    >>> log = Log()
    >>> a = log.alloc(100, 0, "load", "empty", "", "weights")
    >>> b = log.alloc(20, 0, "forward", "mm", "lm_head", "logits")
    >>> log.free(b)
    >>> log.live_peak(), log.peaks_by_phase(0), log.at_peak(0)
    (120, {'load': 100, 'forward': 120}, {'weights': 100, 'logits': 20})

    """

    work: dict[str, Work] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    """What was traced and how: versions, emulation, seconds; text for people and caches."""

    def __post_init__(self) -> None:
        """Begin empty."""
        self._rows = {name: array("q") for name in (*_NUMBERS, *_NAMED)}
        self._names = {name: _Names() for name in _NAMED}
        self._born: array[int] = array("q")
        self._dead: set[int] = set()
        self._visits: set[tuple[int, int]] = set()

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self._rows["kind"])

    def alloc(
        self, nbytes: int, device: int, phase: str, op: str, module: str, component: str
    ) -> int:
        """Record an allocation and return the block's number."""
        block = len(self._born)
        self._born.append(len(self))
        named = (phase, op, module, component)
        codes = [self._names[k].code(v) for k, v in zip(_NAMED, named, strict=True)]
        self._append((ALLOC, block, nbytes, device, *codes))
        return block

    def free(self, block: int, phase: str | None = None) -> None:
        """Record that ``block`` is given back, in ``phase`` or in that of the last event.

        Raises:
            ValueError: it is not live.

        """
        if block in self._dead or not 0 <= block < len(self._born):
            raise ValueError(f"Block {block} is not live, so it can't be freed.")
        self._dead.add(block)
        born, rows = self._born[block], self._rows
        code = rows["phase"][-1] if phase is None else self._names["phase"].code(phase)
        kept = [rows[name][born] for name in ("nbytes", "device")]
        self._append((FREE, block, *kept, code, *(rows[n][born] for n in _NAMED[1:])))

    def enter(self, phase: str) -> None:
        """Note that ``phase`` begins: it has a peak, even if nothing is allocated in it."""
        self._visits.add((len(self), self._names["phase"].code(phase)))

    def relabel(self, block: int, component: str) -> None:
        """Say what a block turned out to be for: a gradient is known only once it is kept."""
        self._rows["component"][self._born[block]] = self._names["component"].code(component)

    def size(self, block: int) -> int:
        """Return the bytes of a block."""
        return self._rows["nbytes"][self._born[block]]

    def device_of(self, block: int) -> int:
        """Return the device that a block is, or was, on."""
        return self._rows["device"][self._born[block]]

    def column(self, name: str) -> NDArray[np.int64]:
        """Return a column as numbers: kind, block, nbytes, device, or a named column's codes."""
        return np.frombuffer(self._rows[name], dtype=np.int64).copy()

    def names(self, name: str) -> list[str]:
        """Return what the codes of phase, op, module or component stand for."""
        return list(self._names[name].names)

    @property
    def kind(self) -> NDArray[np.int64]:
        """+1 for an allocation, -1 for a free."""
        return self.column("kind")

    @property
    def block(self) -> NDArray[np.int64]:
        """The block's number: 0, 1, ... in order of birth."""
        return self.column("block")

    @property
    def nbytes(self) -> NDArray[np.int64]:
        """The block's size, in both of its rows."""
        return self.column("nbytes")

    @property
    def device(self) -> NDArray[np.int64]:
        """The device's index."""
        return self.column("device")

    @property
    def phase(self) -> list[str]:
        """The innermost phase of each event."""
        return self._text("phase")

    @property
    def op(self) -> list[str]:
        """The operation that allocated the block."""
        return self._text("op")

    @property
    def module(self) -> list[str]:
        """The module that was running when the block was allocated; "" outside of all."""
        return self._text("module")

    @property
    def component(self) -> list[str]:
        """What the block is for."""
        return self._text("component")

    def devices(self) -> list[int]:
        """Return the indices of the devices used."""
        return sorted(set(self._rows["device"]))

    def live(self, device: int = 0) -> NDArray[np.int64]:
        """Return the live bytes on ``device`` after each event (of all devices)."""
        mine = self.device == device
        return np.cumsum(np.where(mine, self.kind * self.nbytes, 0))

    def live_peak(self, device: int = 0) -> int:
        """Return the most bytes live at once."""
        return int(self.live(device).max(initial=0))

    def peaks_by_phase(self, device: int = 0) -> dict[str, int]:
        """Return the most bytes live at once while each phase was innermost."""
        return {name: level for name, (level, _) in self._peaks(device).items()}

    def at_peak(self, device: int = 0, phase: str | None = None) -> dict[str, int]:
        """Return the bytes of each component at the (first) peak, of one phase or of all."""
        peaks = self._peaks(device)
        if phase is not None:
            peaks = {phase: peaks[phase]}
        if not peaks:
            return {}
        row = max(peaks.values(), key=lambda peak: (peak[0], -peak[1]))[1]
        return self.live_at(row, device)

    def live_at(self, row: int, device: int = 0, by: str = "component") -> dict[str, int]:
        """Return the live bytes after event ``row``, by component (or op, module, phase)."""
        until = slice(0, row + 1)
        block, kind, mine = self.block[until], self.kind[until], self.device[until] == device
        gone = np.zeros(len(self._born), dtype=bool)
        gone[block[kind == FREE]] = True
        held = mine & (kind == ALLOC) & ~gone[block]
        codes, sizes = self.column(by)[until][held], self.nbytes[until][held]
        total: Counter[str] = Counter()
        for code in np.unique(codes):
            total[self._names[by].names[code]] += int(sizes[codes == code].sum())
        return dict(total)

    def save(self, path: Path) -> None:
        """Write the log as one ``.npz`` file."""
        about = {
            "names": {name: self._names[name].names for name in _NAMED},
            "work": {p: vars(w) for p, w in self.work.items()},
            "facts": self.facts,
            "visits": sorted(self._visits),
        }
        columns: dict[str, Any] = {name: self.column(name) for name in self._rows}
        with open(path, "wb") as file:  # given a path, numpy would change its ending
            np.savez_compressed(file, about=np.array(json.dumps(about)), **columns)

    @classmethod
    def load(cls, path: Path) -> Log:
        """Read what :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            columns = {name: file[name] for name in (*_NUMBERS, *_NAMED)}
        log = cls({p: Work(**w) for p, w in about["work"].items()}, dict(about["facts"]))
        log._take(columns, about["names"])
        log._visits = {(row, code) for row, code in about["visits"]}
        return log

    def _take(self, columns: Mapping[str, NDArray[np.int64]], names: dict[str, list[str]]) -> None:
        self._rows = {name: array("q", values.tobytes()) for name, values in columns.items()}
        self._names = {name: _Names(names[name]) for name in _NAMED}
        kind, block = columns["kind"], columns["block"]
        self._born = array("q", np.flatnonzero(kind == ALLOC).tolist())
        self._dead = set(block[kind == FREE].tolist())

    def _append(self, row: Iterable[int]) -> None:
        for column, value in zip(self._rows.values(), row, strict=True):
            column.append(value)

    def _text(self, name: str) -> list[str]:
        known = self._names[name].names
        return [known[code] for code in self._rows[name]]

    def _peaks(self, device: int) -> dict[str, tuple[int, int]]:
        """Return level and row of each phase's peak; a phase starts at what it finds."""
        live, phase = self.live(device), self.column("phase")
        names = self._names["phase"].names
        found: dict[str, tuple[int, int]] = {}
        for row, code in sorted(self._visits):
            if row and int(live[row - 1]) > found.get(names[code], (-1, 0))[0]:
                found[names[code]] = (int(live[row - 1]), row - 1)
        borders = np.flatnonzero(np.diff(phase, prepend=-1)).tolist()
        for begin, end in zip(borders, [*borders[1:], len(phase)], strict=True):
            first = max(begin - 1, 0)
            row = first + int(live[first:end].argmax())
            name = names[phase[begin]]
            if name not in found or live[row] > found[name][0]:
                found[name] = (int(live[row]), row)
        return found
