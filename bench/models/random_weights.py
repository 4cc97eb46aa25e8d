"""Random weights in the shape of a real model: memory and time depend on shapes alone.

The module is built on the meta device, then each tensor is made where and as it is wanted and
initialised the way the model family is before pretraining. So nothing exists twice, not even
for a moment: neither a float32 copy nor an output head that is tied away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bench.models.classes import auto_class, class_options
from bench.models.loaded import Kind
from bench.models.quiet import quiet

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Seed the global streams of the CPU and of ``device``; afterwards they are as before."""
    place = torch.device(device)
    with torch.random.fork_rng([], enabled=True):
        # Not torch.manual_seed: it seeds every CUDA device, and those are not forked here.
        torch.default_generator.manual_seed(seed)
        if place.type != "cuda":
            yield
            return
        with torch.random.fork_rng([place]), torch.cuda.device(place):
            torch.cuda.manual_seed(seed)
            yield


def build(
    config: PretrainedConfig, kind: Kind, *, dtype: str, device: str, seed: int
) -> PreTrainedModel:
    """Return the model of ``config`` with weights drawn from ``seed``, in evaluation mode.

    Holds each weight once: on ``device``, in ``dtype``. On "meta" nothing is drawn.
    """
    skeleton: Any = _skeleton(config, kind, dtype)
    if device != "meta":
        with seeded(seed, device), torch.no_grad():
            _materialise_(skeleton, torch.device(device))
            skeleton.initialize_weights()
    model: PreTrainedModel = skeleton
    return model


def _skeleton(config: PretrainedConfig, kind: Kind, dtype: str) -> object:
    auto, options = auto_class(kind), class_options(kind, config)
    with quiet(), torch.device("meta"):
        return auto.from_config(config, dtype=getattr(torch, dtype), **options).eval()


def _materialise_(model: nn.Module, device: torch.device) -> None:
    """Make every tensor of a meta model, uninitialised, on ``device``; tied ones stay tied."""
    made: dict[nn.Parameter, nn.Parameter] = {}
    for module in model.modules():
        own = {k: p for k, p in module._parameters.items() if p is not None}
        # transformers' own mark: the head's weights are the embedding's, so don't draw again.
        drawn = bool(own) and all(p in made for p in own.values())
        module._is_hf_initialized = drawn  # type: ignore[assignment]  # modules take any attribute
        for key, parameter in own.items():
            if parameter not in made:
                made[parameter] = nn.Parameter(_empty(parameter, device))
            module._parameters[key] = made[parameter]
        for key, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[key] = _empty(buffer, device)


def _empty(like: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=device)
