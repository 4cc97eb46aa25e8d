"""From rows of different lengths to one tensor: padded on the left for causal models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypedDict

import torch

from bench.models import LoadedModel
from bench.tasks.kit.encode import Encoded
from bench.tasks.kit.vocabulary import IGNORED

if TYPE_CHECKING:
    from torch import Tensor


class Padded(TypedDict):
    """The fields of ``Batch`` that padding decides."""

    input_ids: Tensor  # (R, T) int64
    attention_mask: Tensor | None  # (R, T) int64; None: nothing is padded
    position_ids: Tensor | None  # (R, T) int64; None: 0, 1, 2, ...


def tensor(values: Sequence[object], device: str) -> Tensor:
    """Return whole numbers as int64 on ``device``."""
    return torch.tensor(values, dtype=torch.int64, device=device)


def pad(loaded: LoadedModel, rows: Sequence[Sequence[int]], device: str) -> Padded:
    """Return the rows as long as the longest of them.

    Causal models answer after the last token, so their padding is on the left; others take it on
    the right, where it moves nothing (and RoBERTa counts positions for itself).
    """
    longest = max(map(len, rows))
    left = loaded.kind == "causal"

    def padded(filler: int, content: Sequence[Sequence[int]]) -> Tensor:
        fills = [[filler] * (longest - len(row)) for row in content]
        sides = zip(fills, content, strict=True)
        return tensor([[*f, *c] if left else [*c, *f] for f, c in sides], device)

    some = any(len(row) < longest for row in rows)
    return {
        "input_ids": padded(loaded.pad_id, rows),
        "attention_mask": padded(0, [[1] * len(row) for row in rows]) if some else None,
        "position_ids": padded(0, [range(len(r)) for r in rows]) if some and left else None,
    }


def pad_answers(
    loaded: LoadedModel, asked: Sequence[Sequence[tuple[Sequence[int], int]]], device: str
) -> tuple[Padded, Tensor]:
    """Return padded inputs, and the answers that are asked at their last K places.

    Of each example come its sequences, one an answer, with the number of tokens at its end that
    are the answer. Nothing is asked after its last token, so that token is no input; where that
    leaves every example with the same input for all its answers, the input is there once.
    """
    sequences = [sequence for one in asked for sequence in one]
    longest = max(n for _, n in sequences)
    answers = [
        [*[IGNORED] * (longest - n), *ids[len(ids) - n :]] for ids, n in sequences
    ]  # K places from the end, whatever the length
    shared = all(len({tuple(ids[:-1]) for ids, _ in one}) == 1 for one in asked)
    given = [one[0] for one in asked] if shared else sequences
    inputs = pad(loaded, [ids[:-1] for ids, _ in given], device)
    return inputs, tensor(answers, device)


def by_length(rows: Sequence[Encoded], size: int) -> Iterator[tuple[int, ...]]:
    """Yield the indices of ``rows``, ``size`` at a time, with similar lengths together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    for start in range(0, len(order), size):
        yield tuple(order[start : start + size])
