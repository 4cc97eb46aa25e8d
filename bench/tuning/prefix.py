"""Prefix tuning: train keys and values that every layer attends to before the text.

Li and Liang, "Prefix-tuning: optimizing continuous prompts for generation", ACL 2021, arXiv
2101.00190, without the reparametrisation; as in the MeZO paper (arXiv 2305.17333, appendix E.2)
5 tokens, initialised with the keys and values that the model computes for real tokens.

Where we differ: the prefix takes positions 0, 1, ..., and the text follows it, as in ``peft``; the
prefix is then exactly as good as the tokens it starts from. In MeZO's code text starts at 0 too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bench.tuning.kit.checks import at_least_one

if TYPE_CHECKING:
    from bench.models import LoadedModel

TITLE = "prefix tuning: keys and values before the text, in every layer"


@dataclass(frozen=True)
class Tuning:
    """Prefix tuning."""

    tokens: int = 5
    """Length of the prefix."""

    def __post_init__(self) -> None:
        """Refuse an empty prefix."""
        at_least_one("tokens", self.tokens)

    def apply_(
        self, loaded: LoadedModel, *, seed: int, real_ids: Sequence[Sequence[int]]
    ) -> LoadedModel:
        """Add the prefix: tokens * 2 * layers * KV heads * head width trained numbers.

        Costs one forward pass over ``tokens`` tokens.

        Raises:
            UserError: the model keeps no keys and values, or there is no room for the prefix.

        """
        # Why here: it imports peft, seconds to import, and other tunings don't need it.
        from bench.models.random_weights import seeded
        from bench.tuning.kit.parts import initial_ids, new_head, train_only_, transformer
        from bench.tuning.kit.virtual_tokens import Prefix, attach_prefix_, key_values

        ids = initial_ids(loaded, self.tokens, real_ids, seed)
        body = transformer(loaded.module)
        real = key_values(body, ids, loaded.facts.name)
        with seeded(seed, "cpu"):  # peft draws weights before they are replaced
            prefix = Prefix(real)
        attach_prefix_(body, prefix)
        train_only_(loaded.module, [*prefix.parameters(), *new_head(loaded.module)])
        return replace(loaded, context=loaded.context - self.tokens)
