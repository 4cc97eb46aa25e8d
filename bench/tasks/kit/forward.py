"""The forward passes, with logits where they are asked for and nowhere else.

Shapes: B examples, R sequences, T tokens, K of them asked, A answers to each sequence, C classes,
H hidden, V vocabulary. A mask and position ids are passed only where something is padded: without
them attention takes its fast causal path, and a traced step takes the same road as a real one.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
import torch.nn.functional as F

from bench.models import Kind
from bench.tasks.kit.output_head import head_asked
from bench.tasks.kit.values import Batch
from bench.tasks.kit.vocabulary import IGNORED, logit_losses, vocabulary_losses

if TYPE_CHECKING:
    from torch import Tensor, nn

_whole: WeakSet[nn.Module] = WeakSet()
"""Models that change their logits after the head, as Gemma 2 caps them: those are made whole."""


def class_logits(module: nn.Module, kind: Kind, batch: Batch) -> Tensor:  # (B, C) float32
    """Return the logits of the label words, where the answer is; no others are made."""
    assert batch.candidates is not None
    with head_asked(module, partial(_candidates, batch)) as narrow:
        logits = _masked_logits(module, batch) if kind == "masked" else _last_logits(module, batch)
    return (logits if narrow else logits.index_select(1, batch.candidates)).float()


def head_logits(module: nn.Module, batch: Batch) -> Tensor:  # (B, C) float32
    """Return the logits of a model under a classification head."""
    logits: Tensor = module(**_inputs(batch)).logits
    return logits.float()


def answer_losses(module: nn.Module, batch: Batch) -> Tensor:  # (R * A,) float32
    """Return the mean cross-entropy of each answer's tokens."""
    assert batch.answers is not None
    rows, k = batch.input_ids.shape[0], batch.answers.shape[1]
    targets = batch.answers.view(rows, -1, k).transpose(1, 2)  # (R, K, A)
    extra = {"use_cache": False, "logits_to_keep": k}
    losses = _losses(module, batch, targets, extra).sum(1) / (targets != IGNORED).sum(1)
    return losses.flatten()


def token_losses(module: nn.Module, kind: Kind, batch: Batch) -> Tensor:  # (B,) float32
    """Return each sequence's mean cross-entropy over tokens asked."""
    targets = batch.targets
    extra: dict[str, Any] = {"use_cache": False} if kind == "causal" else {}
    losses = _losses(module, batch, targets[..., None], extra)[..., 0]
    return losses.sum(1) / (targets != IGNORED).sum(1)


def greedy(module: nn.Module, batch: Batch, stop: Tensor, new_tokens: int) -> Tensor:  # (B, N)
    """Return the most likely token after each sequence, again and again: N <= ``new_tokens``.

    Ends when every sequence has met a token of ``stop``, which asks the device each time; what
    follows such a token means nothing. Keys and values are kept from token to token.
    """
    feed, mask, places = batch.input_ids, batch.attention_mask, batch.position_ids
    mask = torch.ones_like(feed) if mask is None else mask
    if places is None:
        places = torch.arange(feed.shape[1], device=feed.device).expand_as(feed)
    past: dict[str, Any] = {"use_cache": True, "logits_to_keep": 1}
    done = torch.zeros_like(feed[:, 0], dtype=torch.bool)
    tokens: list[Tensor] = []
    while len(tokens) < new_tokens and not (tokens and done.all()):
        with head_asked(module, None):
            out = module(input_ids=feed, attention_mask=mask, position_ids=places, **past)
        past["past_key_values"] = out.past_key_values
        tokens.append(out.logits[:, -1].argmax(-1))
        done |= torch.isin(tokens[-1], stop)
        feed, places = tokens[-1][:, None], places[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(feed)], 1)
    return torch.stack(tokens, 1)


def _losses(
    module: nn.Module,
    batch: Batch,
    targets: Tensor,  # (R, K, A)
    extra: dict[str, Any],
) -> Tensor:  # (R, K, A) float32
    """Return the cross-entropy of each target, 0 where none is asked: one forward pass."""
    asked = None if module in _whole else partial(_head_losses, targets)
    with head_asked(module, asked) as seen:
        out: Tensor = module(**_inputs(batch), **extra).logits
    if seen and out is not seen[-1]:
        _whole.add(module)
        return _losses(module, batch, targets, extra)
    if seen:
        return out
    return logit_losses(out.flatten(0, 1), targets.flatten(0, 1)).view_as(targets)


def _head_losses(targets: Tensor, head: nn.Linear, hidden: Tensor) -> Tensor:
    flat, asked = hidden.flatten(0, 1), targets.flatten(0, 1)
    return vocabulary_losses(flat, head.weight, head.bias, asked).view_as(targets)


def _candidates(batch: Batch, head: nn.Linear, hidden: Tensor) -> Tensor:  # (..., C)
    """Return the logits of the label words alone."""
    assert batch.candidates is not None
    bias = None if head.bias is None else head.bias[batch.candidates]
    return F.linear(hidden, head.weight[batch.candidates], bias)


def _last_logits(module: nn.Module, batch: Batch) -> Tensor:  # (B, V)
    logits: Tensor = module(**_inputs(batch), use_cache=False, logits_to_keep=1).logits
    return logits[:, -1]


def _masked_logits(module: nn.Module, batch: Batch) -> Tensor:  # (B, V)
    """Run the encoder, and the head on the answers' B rows instead of on all B * T."""
    assert batch.answer_at is not None
    rows = torch.arange(batch.answer_at.shape[0], device=batch.answer_at.device)
    head = getattr(module, "lm_head", None)
    if head is None:  # a family that names it otherwise: right, but with all logits
        whole: Tensor = module(**_inputs(batch)).logits
        return whole[rows, batch.answer_at]
    hidden: Tensor = _encoder(module)(**_inputs(batch))[0]  # (B, T, H)
    logits: Tensor = head(hidden[rows, batch.answer_at])
    return logits


def _encoder(module: Any) -> Any:
    """The model without its head; ``base_model`` is transformers' name for it."""
    return module.base_model


def _inputs(batch: Batch) -> dict[str, Tensor]:
    given = {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    return {"input_ids": batch.input_ids} | {k: v for k, v in given.items() if v is not None}
