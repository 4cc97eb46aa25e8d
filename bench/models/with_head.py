"""A linear classification head on any model: the same one for causal, masked and encoder models.

As the heads of transformers' ``AutoModelForSequenceClassification`` (the protocol of MeZO-SVRG,
Gautam et al., 2024), with two differences, so that all families are treated alike:

1. One linear layer, zero at first: every class begins with the same probability, and the seed
   decides nothing. (transformers draws it at random; RoBERTa has a second layer before it.)
2. Causal models are read at their last token; masked models and encoders by the mean over their
   tokens. (transformers takes RoBERTa's first token, and BERT's through its pooler.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from bench.models.loaded import Kind
from bench.records import UserError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PretrainedConfig, PreTrainedModel


class WithHead(nn.Module):
    """``base`` without its own head, and ``head``, an ``nn.Linear`` from hidden states to classes.

    Padding may be on either side. What is asked of a transformers model is here too: ``config``,
    ``base_model``, the token embedding.
    """

    def __init__(self, base: PreTrainedModel, head: nn.Linear, *, causal: bool) -> None:
        """Put the two together; ``causal`` decides which hidden state is read."""
        super().__init__()
        self.base = base
        self.head = head
        self.causal = causal

    def forward(
        self,
        input_ids: Tensor | None = None,  # (B, T) int64
        attention_mask: Tensor | None = None,  # (B, T), 0 at padding; None: nothing is padded
        **others: Any,
    ) -> SequenceClassifierOutput:
        """Return ``logits`` (B, C) in the model's dtype; ``others`` go to the base."""
        if self.causal:
            others["use_cache"] = False
        hidden = self.base(input_ids=input_ids, attention_mask=attention_mask, **others)[0]
        read = _last if self.causal else _mean
        return SequenceClassifierOutput(logits=self.head(read(hidden, attention_mask)))

    @property
    def base_model(self) -> PreTrainedModel:
        """transformers' name for the model without its head."""
        return self.base

    @property
    def config(self) -> PretrainedConfig:
        """The configuration of the base."""
        return self.base.config

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding of the base."""
        return self.base.get_input_embeddings()


def with_head(model: PreTrainedModel, kind: Kind, classes: int | None, name: str) -> nn.Module:
    """Return ``model`` as it is, or (``classes`` given) its base under a zero head.

    The model's own language model head is left behind: a tied one stays as the embedding, an
    untied one is no longer there, and not counted.

    Raises:
        UserError: an encoder, which has no other use, and no head is asked for.

    """
    if classes is None:
        if kind == "encoder":
            raise UserError(
                f"Model '{name}' is an encoder: it predicts no tokens, so it needs a "
                "classification head. Set objective = 'head', or choose a language model: "
                "zometer list models"
            )
        return model
    base: Any = model if kind == "encoder" else model.base_model
    head = nn.Linear(_width(model), classes, device="meta")  # drawn nowhere: see point 1
    like = next(model.parameters())
    for name, parameter in list(head.named_parameters()):
        setattr(head, name, nn.Parameter(like.new_zeros(parameter.shape)))
    return WithHead(base, head, causal=kind == "causal").train(model.training)


def _width(model: Any) -> int:
    """Return the width of the hidden states that leave the base: less than inside in OPT-350M."""
    own = model.get_output_embeddings()
    return int(own.weight.shape[1] if own is not None else model.config.hidden_size)


def _last(hidden: Tensor, mask: Tensor | None) -> Tensor:  # (B, H)
    if mask is None:
        return hidden[:, -1]
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    # The last that is not padding. A mask may be longer than the tokens: a prefix before them.
    return hidden[rows, -1 - mask.flip(1).argmax(1)]


def _mean(hidden: Tensor, mask: Tensor | None) -> Tensor:  # (B, H)
    if mask is None:
        return hidden.mean(1)
    kept = mask[:, -hidden.shape[1] :, None].to(hidden.dtype)
    total = (hidden * kept).sum(1, dtype=torch.float32)
    return (total / kept.sum(1, dtype=torch.float32)).to(hidden.dtype)
