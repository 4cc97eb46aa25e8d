"""Look from elsewhere: other values change places with the weights while an objective looks.

Values are exchanged, not storages: views, tied weights and captured graphs go on to hold. The
exchange is exact, and theta waits in the buffers that the other values came from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from zo_core import noise
from zo_core.base import Params, Span, no_span


@contextmanager
def standing_at(
    params: Params,
    values: Sequence[Tensor] | None,  # one a parameter, of its shape and dtype, contiguous
    span: Span = no_span,
) -> Iterator[None]:
    """Let ``params`` hold ``values`` inside the context; nothing happens where that is None.

    Costs two passes over the weights, and scratch of one piece.
    """
    if values is None:
        yield
        return
    _exchange_(params, values, span)
    try:
        yield
    finally:
        _exchange_(params, values, span)


def _exchange_(params: Params, values: Sequence[Tensor], span: Span) -> None:
    with span("perturb"), torch.no_grad():
        for param, value in zip(params, values, strict=True):
            flat = value.view(-1)
            for piece in noise.pieces((param,)):
                there = flat[piece.first : piece.first + piece.part.numel()]
                waiting = piece.part.clone()
                piece.part.copy_(there)
                there.copy_(waiting)
