"""Cross-entropy over a vocabulary that never holds all the logits.

Shapes: N tokens, H hidden, V vocabulary, W of it at a time, A answers that are asked of a token.
The vocabulary is taken in pieces, not the tokens: each piece of the head's weights is read (and
packed by the matrix product) once, and its gradient is finished when the piece is done. So a pass
needs N * W numbers in float32 in the place of two or three times N * V, and on the CPU it is
faster than the whole as well: what is allocated stays in the cache.

    lse_n = log sum_v exp(h_n . w_v + b_v)        loss_na = lse_n - (h_n . w_y + b_y), y = y_na

The backward pass makes the logits once more (one product of four) instead of keeping them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100  # the target of a token that is not asked for, as in torch

_PIECE = (
    1 << 21
)  # logits at a time: 8 MiB in float32, measured best on CPUs with 1 to 32 MiB cache
_NARROWEST = 1024  # tokens of the vocabulary: narrower products are slow


def vocabulary_losses(
    hidden: Tensor,  # (N, H)
    weight: Tensor,  # (V, H)
    bias: Tensor | None,  # (V,)
    targets: Tensor,  # (N, A) int64; IGNORED: not asked
) -> Tensor:
    """Return each target's cross-entropy in nats, (N, A) float32; 0 where none is asked.

    Logits are rounded to the dtype of the model (or of autocast) and summed in float32, as if
    they had been made whole. Costs one product of the head; with gradients, four in all.
    """
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    if torch.is_grad_enabled() and any(t.requires_grad for t in (hidden, weight)):
        apply: Any = _Losses.apply  # torch has no types for it
        return cast("Tensor", apply(hidden, weight, bias, targets))
    lse, picked = _scored(hidden, weight, bias, targets)
    return _asked(lse, picked, targets)


def logit_losses(
    logits: Tensor,  # (N, V), in the dtype of the model
    targets: Tensor,  # (N, A) int64
) -> Tensor:
    """Return the same from logits that are there already, in float32 a few tokens at a time."""
    rows = max(1, _PIECE // logits.shape[1])
    parts = []
    for at in range(0, len(logits), rows):
        one, asked = logits[at : at + rows].float(), targets[at : at + rows]
        picked = one.gather(1, asked.clamp(min=0))
        parts.append(_asked(one.logsumexp(1), picked, asked))
    return torch.cat(parts)


class _Losses(torch.autograd.Function):
    """The same with gradients; hidden states and sums are kept for them, logits are not."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
    ) -> Tensor:
        lse, picked = _scored(hidden, weight, bias, targets)
        ctx.save_for_backward(hidden, weight, bias, targets, lse)
        return _asked(lse, picked, targets)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Turn each piece of logits into its gradient, and that into those of its factors."""
        hidden, weight, bias, targets, lse = ctx.saved_tensors
        given = grads[0].masked_fill(targets == IGNORED, 0)
        wanted = ctx.needs_input_grad
        to_hidden = hidden.new_zeros(hidden.shape, dtype=torch.float32) if wanted[0] else None
        to_weight = torch.empty_like(weight) if wanted[1] else None
        to_bias = torch.empty_like(bias) if bias is not None and wanted[2] else None
        for lo, hi in _pieces(len(hidden), len(weight)):
            some = weight[lo:hi].to(hidden.dtype)
            logits = _logits(hidden, some, bias, lo, hi)
            slope = logits.sub_(lse[:, None]).exp_().mul_(given.sum(1, keepdim=True))
            at, inside = _within(targets, lo, hi)
            slope.scatter_add_(1, at, torch.where(inside, -given, 0.0))
            rounded = slope.to(hidden.dtype)
            if to_hidden is not None:
                to_hidden += rounded @ some
            if to_weight is not None:
                _product_(to_weight[lo:hi], rounded.t(), hidden)
            if to_bias is not None:
                to_bias[lo:hi] = slope.sum(0)
        rows = None if to_hidden is None else to_hidden.to(hidden.dtype)
        return rows, to_weight, to_bias, None


def _scored(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor
) -> tuple[Tensor, Tensor]:  # (N,), (N, A) float32
    """Return the log of the sum over the vocabulary, and the logits of the targets."""
    sums = []
    picked = torch.zeros(targets.shape, dtype=torch.float32, device=hidden.device)
    for lo, hi in _pieces(len(hidden), len(weight)):
        logits = _logits(hidden, weight[lo:hi], bias, lo, hi)
        at, inside = _within(targets, lo, hi)
        picked = torch.where(inside, logits.gather(1, at), picked)
        most = logits.amax(1, keepdim=True)
        sums.append(logits.sub_(most).exp_().sum(1).log_().add_(most[:, 0]))
    return torch.stack(sums).logsumexp(0), picked


def _product_(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Write ``left @ right``; by way of another tensor only where autocast made the factors."""
    if out.dtype == left.dtype:
        torch.mm(left, right, out=out)
    else:
        out.copy_(left @ right)


def _pieces(tokens: int, vocabulary: int) -> Iterator[tuple[int, int]]:
    width = max(_NARROWEST, _PIECE // max(1, tokens) // 64 * 64)
    for lo in range(0, vocabulary, width):
        yield lo, min(lo + width, vocabulary)


def _logits(hidden: Tensor, some: Tensor, bias: Tensor | None, lo: int, hi: int) -> Tensor:
    """Return logits of a piece in float32: a new tensor, to be written into. (N, W)."""
    own = None if bias is None else bias[lo:hi].to(hidden.dtype)
    return F.linear(hidden, some.to(hidden.dtype), own).float()


def _within(targets: Tensor, lo: int, hi: int) -> tuple[Tensor, Tensor]:
    """Return where the targets lie in a piece (anywhere if they do not), and whether they do."""
    return (targets - lo).clamp(0, hi - lo - 1), (targets >= lo) & (targets < hi)


def _asked(lse: Tensor, picked: Tensor, targets: Tensor) -> Tensor:
    return (lse[:, None] - picked).masked_fill(targets == IGNORED, 0.0)
