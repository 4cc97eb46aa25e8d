"""What loading a model gives: the module, its tokenizer, and the facts for the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from bench.records import ModelFacts

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

Kind = Literal["causal", "masked", "encoder"]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for a task."""

    module: nn.Module
    """A transformers model, or one under a classification head (``WithHead``). In evaluation mode;
    every parameter requires a gradient."""
    tokenizer: PreTrainedTokenizerBase | None
    """Absent where the weights are random: there is no vocabulary behind the ids."""
    kind: Kind
    """Does it predict the next token, or the masked one, or (an encoder) none?"""
    facts: ModelFacts
    context: int
    """Longest sequence it takes, in tokens."""
    vocabulary: int
    """Token ids run from 0 to this, exclusive."""
    pad_id: int
    """Token id for padding; always masked out."""
