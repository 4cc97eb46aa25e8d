"""Train every weight."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.models import LoadedModel

TITLE = "all weights"


@dataclass(frozen=True)
class Tuning:
    """Full fine-tuning; no options."""

    def apply_(
        self, loaded: LoadedModel, *, seed: int, real_ids: Sequence[Sequence[int]]
    ) -> LoadedModel:
        """Unfreeze everything."""
        loaded.module.requires_grad_(True)
        return loaded
