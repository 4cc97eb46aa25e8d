"""The parts of a model, whatever its family: the transformer, and the head on top of it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from torch import nn

from bench.records import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bench.models import LoadedModel

_SPECIAL = 4  # ids of padding, begin and end in OPT, LLaMA and RoBERTa are below; never drawn


def transformer(module: nn.Module) -> PreTrainedModel:
    """Return the innermost model that holds the token embedding: embeddings and blocks, no head.

    Of OPT that is the decoder: its language model calls the decoder past the model between them.
    """
    from transformers import PreTrainedModel  # why here: seconds to import

    models = [m for m in module.modules() if isinstance(m, PreTrainedModel)]
    embedding = models[0].get_input_embeddings()
    return [m for m in models if any(part is embedding for part in m.modules())][-1]


def output_head(module: nn.Module) -> list[nn.Module]:
    """Return what stands beside the transformer: a classification or a language model head."""
    body = transformer(module)
    if module is body:
        return []
    return [part for part in module.children() if not any(m is body for m in part.modules())]


def new_head(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a classification head; none of a language model.

    Such a head was not pretrained, so whatever else is trained, it is as well.
    """
    head = output_head(module)
    get = getattr(module, "get_output_embeddings", None)
    projection = get() if get is not None else None
    if any(m is projection for part in head for m in part.modules()):
        return []
    return [p for part in head for p in part.parameters()]


def train_only_(module: nn.Module, parameters: Iterable[nn.Parameter]) -> None:
    """Freeze everything but ``parameters``."""
    module.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)


def initial_ids(
    loaded: LoadedModel, tokens: int, real_ids: Sequence[Sequence[int]], seed: int
) -> list[int]:
    """Return the first ``tokens`` ids of real text (again from its start where it is shorter).

    Ids drawn from the seed where there is no text, as published code draws them.

    Raises:
        UserError: the virtual tokens leave no room for others.

    """
    if tokens >= loaded.context:
        raise UserError(
            f"tokens = {tokens} leaves no room for text: model '{loaded.facts.name}' takes "
            f"{loaded.context} tokens in all. Lower tokens."
        )
    text = [i for row in real_ids for i in row]
    if text:
        return list(itertools.islice(itertools.cycle(text), tokens))
    draw = random.Random(f"virtual tokens {seed}")
    return draw.choices(range(_SPECIAL, loaded.vocabulary), k=tokens)
