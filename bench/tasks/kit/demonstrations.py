"""In-context learning: solved examples before each question, the same ones for all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, zip_longest

from bench.records import RunSpec, UserError
from bench.tasks.kit.order import shuffled
from bench.tasks.kit.values import Example


def demonstrations(spec: RunSpec, train: Sequence[Example]) -> list[Example]:
    """Return ``spec.demonstrations`` examples: a function of ``spec.seed``, classes balanced.

    They come from behind the ``train_examples`` that the run trains on, so that no example of
    training has its own answer before it.

    Raises:
        UserError: there are not so many left.

    """
    k = spec.demonstrations
    left = train[spec.train_examples :]
    if len(left) < k:
        raise UserError(
            f"demonstrations = {k} are taken from behind the train_examples = "
            f"{spec.train_examples} of {len(train)}, which leaves {len(left)}. "
            "Lower train_examples."
        )
    mixed = shuffled(left, f"demonstrations {spec.seed}")
    labels = sorted({e.label for e in mixed})
    in_turn = zip_longest(*([e for e in mixed if e.label == label] for label in labels))
    chosen = [e for e in chain.from_iterable(in_turn) if e is not None][:k]
    # Again: the last one weighs most with a model, so no class has that place by its number.
    return shuffled(chosen, f"demonstrations {spec.seed} order")
