"""BitFit: train the bias terms.

Ben Zaken, Goldberg and Ravfogel, "BitFit: simple parameter-efficient fine-tuning for
transformer-based masked language-models", ACL 2022, arXiv 2106.10199, section 3: all bias terms,
those of layer norms among them, and the classification head where there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.records import UserError

if TYPE_CHECKING:
    from bench.models import LoadedModel

TITLE = "bias terms (BitFit)"


@dataclass(frozen=True)
class Tuning:
    """BitFit; no options."""

    def apply_(
        self, loaded: LoadedModel, *, seed: int, real_ids: Sequence[Sequence[int]]
    ) -> LoadedModel:
        """Unfreeze every parameter named ``bias``, and a new head.

        Raises:
            UserError: the model has none (LLaMA, for one).

        """
        from bench.tuning.kit.parts import new_head, train_only_  # why here: it imports torch

        named = loaded.module.named_parameters()
        biases = [p for name, p in named if name.rpartition(".")[2] == "bias"]
        if not biases:
            raise UserError(
                f"Model '{loaded.facts.name}' has no bias terms to train. Choose another tuning, "
                "such as 'lora'."
            )
        train_only_(loaded.module, [*biases, *new_head(loaded.module)])
        return loaded
