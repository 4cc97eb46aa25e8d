"""Train the tensors whose names match a pattern."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.tuning.kit.checks import matched, patterns

if TYPE_CHECKING:
    from bench.models import LoadedModel

TITLE = "tensors by name"


@dataclass(frozen=True)
class Tuning:
    """The tensors that a pattern names, and no others: not even a new head."""

    pattern: str = ""
    """Comma separated globs on tensor names: "layers.1.*, final_layer_norm.*". Required."""

    def __post_init__(self) -> None:
        """Refuse to train nothing."""
        if not patterns(self.pattern):
            raise ValueError(
                "Tuning 'layers' needs the option 'pattern': comma separated globs on tensor "
                "names, such as 'layers.0.*'."
            )

    def apply_(
        self, loaded: LoadedModel, *, seed: int, real_ids: Sequence[Sequence[int]]
    ) -> LoadedModel:
        """Unfreeze what is named; a tied tensor answers to both of its names.

        Raises:
            UserError: a glob matches nothing.

        """
        from bench.tuning.kit.parts import train_only_  # why here: it imports torch

        named = dict(loaded.module.named_parameters(remove_duplicate=False))
        chosen = matched(patterns(self.pattern), named, "tensor", loaded.facts.name)
        train_only_(loaded.module, [named[name] for name in chosen])
        return loaded
