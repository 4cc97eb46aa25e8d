"""Train the output head alone.

A classification head where there is one, else the language model head: everything between the
last block and the logits (of RoBERTa a dense layer, a layer norm and the projection).

An LM head tied to the token embedding can't be trained alone: it is untied first, which costs a
copy of the embedding. MeZO's released code does so on demand (``--untie_emb``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.records import UserError

if TYPE_CHECKING:
    from torch import nn

    from bench.models import LoadedModel

TITLE = "output head alone"


@dataclass(frozen=True)
class Tuning:
    """Head tuning."""

    untie: bool = True
    """Give a tied LM head weights of its own; else the token embedding moves with it."""

    def apply_(
        self, loaded: LoadedModel, *, seed: int, real_ids: Sequence[Sequence[int]]
    ) -> LoadedModel:
        """Unfreeze the head.

        Raises:
            UserError: the model has none.

        """
        from bench.tuning.kit.parts import output_head, train_only_  # why here: it imports torch

        head = output_head(loaded.module)
        if not any(True for part in head for _ in part.parameters()):
            raise UserError(
                f"Model '{loaded.facts.name}' has no output head to train. Choose another tuning, "
                "or the objective 'head'."
            )
        if self.untie:
            _untie_(loaded.module, head)
        train_only_(loaded.module, [p for part in head for p in part.parameters()])
        return loaded


def _untie_(module: nn.Module, head: Sequence[nn.Module]) -> None:
    """Replace each tensor that the head shares with the transformer by a copy."""
    from torch.nn import Parameter  # why here: see apply_

    from bench.tuning.kit.parts import transformer

    body: Any = transformer(module)
    shared = {id(p) for p in body.parameters()}
    own: dict[int, Parameter] = {}
    for part in (m for top in head for m in top.modules()):
        for key, parameter in part._parameters.items():
            if parameter is not None and id(parameter) in shared:
                copy = own.setdefault(id(parameter), Parameter(parameter.detach().clone()))
                part._parameters[key] = copy
    if own:
        body.config.tie_word_embeddings = False  # or saving and loading would tie them again
