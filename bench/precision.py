"""What rounding does to a zeroth-order run: the drift of restores, the updates that get lost.

Seen in the steps that time statistics leave out (``warmup_steps``, at least the first one), since
looking costs time: weights are compared before and after the estimate on a sample (the first
entries of each tensor), and every write is compared with what was to be written.

A step that takes weights back and updates them in one pass has one rounding for both. What it
would have left without its update is then what the estimate's drift is counted from, and what
the update is taken to have moved.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from bench.records import METRICS, Measurement, Quality
from zo_core import Params, noise
from zo_core.base import Param, Phase, Piece, Span
from zo_core.writing import observed

SOURCE = "weights compared"

SAMPLE = 4096
"""Entries of each tensor that are looked at for drift."""


class Precision:
    """Sums up over the steps it is shown."""

    def __init__(self, params: Params) -> None:
        """Look at ``params``."""
        self._params = params
        self._drift = _Sums()
        self._update = _Sums()
        self._wanted_squares = self._along = 0.0
        self._before: dict[int, Tensor] = {}  # of the tensors that an update has yet to write to

    @contextmanager
    def step(self, span: Span) -> Iterator[Span]:
        """Watch one step; give the engine the span that this returns."""
        before = self._sample()

        @contextmanager
        def update() -> Iterator[None]:
            nonlocal before
            self._before = before
            with span("update"):
                yield
            for param in self._params:
                if param.key in self._before:  # nothing was written to it
                    self._drifted(param.key, _first(param))
            before = self._sample()  # a step may have more than one update

        def watching(phase: Phase) -> AbstractContextManager[object]:
            return update() if phase == "update" else span(phase)

        with observed(self._written):
            yield watching

    def measurements(self) -> list[Measurement]:
        """Return what was seen; nothing where no zeroth-order step was."""
        found: list[tuple[str, float, Quality]] = []
        if self._drift.entries:
            found.append(("estimate_changed_share", self._drift.share, "sampled"))
            found.append(("estimate_drift_rms", self._drift.rms, "sampled"))
        if self._update.entries:
            found.append(("update_changed_share", self._update.share, "exact"))
            wanted = math.sqrt(self._wanted_squares / self._update.entries)
            found.append(("update_rms", wanted, "exact"))
        if self._wanted_squares:
            found.append(("update_surviving_share", self._along / self._wanted_squares, "exact"))
        # Of a step that diverged they may be infinite; the loss will say so.
        return [_measurement(*one) for one in found if math.isfinite(one[1])]

    def _sample(self) -> dict[int, Tensor]:
        return {p.key: _first(p).clone() for p in self._params}

    def _drifted(self, key: int, now: Tensor) -> None:
        was = self._before.pop(key)
        self._drift.see(now != was, now.double() - was.double())

    def _written(self, piece: Piece, old: Tensor, wanted: Tensor) -> None:
        """Take note of one piece: what it was, and the change asked for; (n,) each."""
        if piece.first == 0 and piece.param.key in self._before:
            self._drifted(piece.param.key, old[:SAMPLE])
        moved = piece.part.double() - old.double()
        asked = wanted.double()
        self._update.see(piece.part != old, moved)
        self._wanted_squares += float(asked @ asked)
        self._along += float(asked @ moved)


def _first(param: Param) -> Tensor:
    return param.tensor.detach().flatten()[:SAMPLE]


class _Sums:
    def __init__(self) -> None:
        self.entries = 0
        self._changed = 0
        self._squares = 0.0

    def see(self, changed: Tensor, by: Tensor) -> None:
        self.entries += changed.numel()
        self._changed += int(changed.sum())
        self._squares += float((by * by).sum())

    @property
    def share(self) -> float:
        return self._changed / self.entries

    @property
    def rms(self) -> float:
        return math.sqrt(self._squares / self.entries)


def _measurement(metric: str, value: float, quality: Quality) -> Measurement:
    return Measurement(
        metric=metric,
        phase="update" if metric.startswith("update") else "train",
        value=value,
        unit=METRICS[metric].unit,
        quality=quality,
        source=SOURCE,
    )


def is_watched(step: int, warmup_steps: int) -> bool:
    """Whether ``step`` is one of those that are looked at."""
    return step < max(1, warmup_steps)


def digest(params: Params) -> str:
    """Return 16 hexadecimal digits that stand for the bits of all trained weights.

    Integer sums per tensor (of each word, and weighted by its place), which are the same in
    any order and fast on any device; then a hash over names and sums.
    """
    sums: dict[str, list[int]] = {}
    words: dict[int, Any] = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    for piece in noise.pieces(params):
        bits = piece.part.view(words[piece.part.itemsize]).long()
        place = torch.arange(piece.first, piece.first + bits.numel(), device=bits.device)
        mixed = (bits * (2 * place + 1) * 0x1E3779B97F4A7C15).sum()
        total = sums.setdefault(piece.param.name, [0, 0])
        total[0] = (total[0] + int(bits.sum())) % 2**64
        total[1] = (total[1] + int(mixed)) % 2**64
    return hashlib.blake2b(repr(sorted(sums.items())).encode(), digest_size=8).hexdigest()
