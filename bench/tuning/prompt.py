"""Prompt tuning: train the embeddings of virtual tokens that stand before the text.

Lester, Al-Rfou and Constant, "The power of scale for parameter-efficient prompt tuning", EMNLP
2021, arXiv 2104.08691; initialised with the embeddings of real tokens (their section 3.2), 10
tokens as in ZO-Bench (arXiv 2402.11592).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench.tuning.kit.checks import at_least_one

if TYPE_CHECKING:
    from bench.models import LoadedModel

TITLE = "prompt tuning: embeddings of virtual tokens before the text"


@dataclass(frozen=True)
class Tuning:
    """Prompt tuning."""

    tokens: int = 10
    """Length of the prompt."""

    def __post_init__(self) -> None:
        """Refuse an empty prompt."""
        at_least_one("tokens", self.tokens)

    def apply_(
        self, loaded: LoadedModel, *, seed: int, real_ids: Sequence[Sequence[int]]
    ) -> LoadedModel:
        """Add the prompt: tokens * embedding width trained numbers.

        Raises:
            UserError: there is no room for the prompt.

        """
        # Why here: it imports peft, seconds to import, and other tunings don't need it.
        from bench.models.random_weights import seeded
        from bench.tuning.kit.parts import initial_ids, new_head, train_only_, transformer
        from bench.tuning.kit.virtual_tokens import Prompt, attach_prompt_

        ids = initial_ids(loaded, self.tokens, real_ids, seed)
        body = transformer(loaded.module)
        with seeded(seed, "cpu"):  # peft draws weights before they are replaced
            prompt = Prompt(body.get_input_embeddings(), ids)
        attach_prompt_(body, prompt)
        train_only_(loaded.module, [*prompt.parameters(), *new_head(loaded.module)])
        return replace(loaded, context=loaded.context - self.tokens)
