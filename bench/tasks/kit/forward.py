"""The forward passes, with logits where they are asked for and nowhere else.

Shapes: B sequences, T tokens, C classes, H hidden, V vocabulary. A mask and position ids are
passed only where something is padded: without them attention takes its fast causal path, and a
traced step takes the same road as a real one.
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


def token_loss(module: nn.Module, kind: Kind, batch: Batch) -> Tensor:  # () float32
    """Return the mean cross-entropy over all tokens asked for; holds (B, T, V) in float32."""
    extra: dict[str, Any] = {"use_cache": False} if kind == "causal" else {}
    # One expression: logits in the model's dtype are freed once they are float32.
    flat = module(**_inputs(batch), **extra).logits.flatten(0, 1).float()
    return F.cross_entropy(flat, batch.targets.flatten(), ignore_index=IGNORED)


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
