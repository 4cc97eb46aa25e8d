"""The forward passes, with logits where they are asked for and nowhere else.

Shapes: B examples, R sequences, T tokens, K of them asked, C classes, H hidden, V vocabulary. A
mask and position ids are passed only where something is padded: without them attention takes its
fast causal path, and a traced step takes the same road as a real one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from bench.models import Kind
from bench.tasks.kit.values import Batch

if TYPE_CHECKING:
    from torch import Tensor, nn

IGNORED = -100  # the target of a token that is not asked for, as in torch


def class_logits(module: nn.Module, kind: Kind, batch: Batch) -> Tensor:  # (B, C) float32
    """Return the logits of the label words, where the answer is."""
    assert batch.candidates is not None
    logits = _masked_logits(module, batch) if kind == "masked" else _last_logits(module, batch)
    return logits.index_select(1, batch.candidates).float()


def head_logits(module: nn.Module, batch: Batch) -> Tensor:  # (B, C) float32
    """Return the logits of a model under a classification head."""
    logits: Tensor = module(**_inputs(batch)).logits
    return logits.float()


def answer_losses(module: nn.Module, batch: Batch) -> Tensor:  # (R,) float32
    """Return the mean cross-entropy of each sequence's answer tokens; (R, K, V) logits."""
    assert batch.answers is not None
    extra: dict[str, Any] = {"use_cache": False, "logits_to_keep": batch.answers.shape[1]}
    # One expression: logits in the model's dtype are freed once they are float32.
    flat = module(**_inputs(batch), **extra).logits.flatten(0, 1).float()
    return _mean_losses(flat, batch.answers)


def token_losses(module: nn.Module, kind: Kind, batch: Batch) -> Tensor:  # (B,) float32
    """Return each sequence's mean cross-entropy over tokens asked; holds (B, T, V) in float32."""
    extra: dict[str, Any] = {"use_cache": False} if kind == "causal" else {}
    flat = module(**_inputs(batch), **extra).logits.flatten(0, 1).float()  # as above
    return _mean_losses(flat, batch.targets)


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
        out = module(input_ids=feed, attention_mask=mask, position_ids=places, **past)
        past["past_key_values"] = out.past_key_values
        tokens.append(out.logits[:, -1].argmax(-1))
        done |= torch.isin(tokens[-1], stop)
        feed, places = tokens[-1][:, None], places[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(feed)], 1)
    return torch.stack(tokens, 1)


def _mean_losses(flat: Tensor, targets: Tensor) -> Tensor:  # (R * K, V), (R, K) -> (R,)
    losses = F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED, reduction="none")
    return losses.view_as(targets).sum(1) / (targets != IGNORED).sum(1)


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
