"""LoRA: train a low-rank addition to some of the weight matrices, through ``peft``.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang and Chen, "LoRA: low-rank adaptation of large language
models", ICLR 2022, arXiv 2106.09685, section 4.1: ``W x + (alpha / r) B A x``, A random, B zero.
Defaults are those of the MeZO paper (arXiv 2305.17333, appendix E.2): r = 8, alpha = 16, on query
and value projections. No dropout: an objective must give one value at one point.

Adapters are in the dtype of the weights. ``peft.get_peft_model`` makes them float32 where weights
are bfloat16 or float16, and MeZO's code casts for float16 alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bench.records import UserError
from bench.tuning.kit.checks import at_least_one, matched, patterns

if TYPE_CHECKING:
    from torch import nn

    from bench.models import LoadedModel

TITLE = "LoRA: low-rank additions, on query and value projections"

# Query and value as the families call them, the fused ones last; the first that a model has.
_QUERY_AND_VALUE = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_lin", "v_lin"),
    ("query_key_value",),
    ("qkv_proj",),
    ("c_attn",),
    ("Wqkv",),
)


@dataclass(frozen=True)
class Tuning:
    """LoRA."""

    r: int = 8
    """Rank."""
    alpha: float = 16.0
    """Scale; the addition is multiplied by alpha / r."""
    targets: str = "auto"
    """Comma separated globs on names of linear layers; "auto": query and value projections."""

    def __post_init__(self) -> None:
        """Refuse a rank or a scale that trains nothing."""
        at_least_one("r", self.r)
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise ValueError(f"Option 'alpha' must be a positive number, got {self.alpha}.")
        if not patterns(self.targets):
            raise ValueError("Option 'targets' is empty; give globs such as 'q_proj, v_proj'.")

    def apply_(
        self, loaded: LoadedModel, *, seed: int, real_ids: Sequence[Sequence[int]]
    ) -> LoadedModel:
        """Put adapters beside the targets; r (in + out) trained numbers each.

        Raises:
            UserError: a target matches no linear layer.

        """
        # Why here: seconds to import, and other tunings don't need it.
        from peft import LoraConfig, inject_adapter_in_model
        from torch._subclasses.fake_tensor import unset_fake_temporarily

        from bench.tuning.kit.parts import new_head, train_only_

        module: nn.Module = loaded.module
        linear = _linear(module)
        targets = self._targets(list(linear), loaded.facts.name)
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,  # type: ignore[arg-type]  # only ever divided by r
            lora_dropout=0.0,
            target_modules=targets,
            fan_in_fan_out=any(type(linear[t]).__name__ == "Conv1D" for t in targets),
        )
        head = new_head(module)
        # Out of fake mode, where peft's moves of meta tensors fail in torch; see _drawn.
        with unset_fake_temporarily(), warnings.catch_warnings():
            # peft warns of adapters on a tied head; they are not tied, as is intended.
            warnings.filterwarnings("ignore", "Model (has|with) `tie_word_embeddings=True`")
            inject_adapter_in_model(config, module, low_cpu_mem_usage=True)
        train_only_(module, [*_drawn(module, seed), *head])
        return loaded

    def _targets(self, linear: Sequence[str], model: str) -> list[str]:
        if self.targets != "auto":
            return matched(patterns(self.targets), linear, "linear layer", model)
        tails = {name.rpartition(".")[2] for name in linear}
        for pair in _QUERY_AND_VALUE:
            if tails >= set(pair):
                return matched(pair, linear, "linear layer", model)
        raise UserError(
            f"Model '{model}' has no query and value projections by a known name. Give the option "
            f"'targets'; its linear layers are called: {', '.join(sorted(tails))}."
        )


def _drawn(module: nn.Module, seed: int) -> list[nn.Parameter]:
    """Draw the adapters, which peft left on "meta", as peft would have; return them.

    Drawn in float32 on the CPU, so a seed gives the same adapters on any device.
    """
    import torch  # why here: see apply_
    from peft.tuners.lora import LoraLayer

    from bench.models.random_weights import seeded

    drawn = []
    layers: list[Any] = [m for m in module.modules() if isinstance(m, LoraLayer)]
    with seeded(seed, "cpu"):
        for layer in layers:
            like = layer.get_base_layer().weight
            parts = [factor["default"] for factor in (layer.lora_A, layer.lora_B)]
            for part in parts:
                part.weight = torch.nn.Parameter(torch.empty(part.weight.shape))
            layer.reset_lora_parameters("default", True)
            for part in parts:
                part.weight = torch.nn.Parameter(part.weight.detach().to(like.device, like.dtype))
            drawn += [part.weight for part in parts]
    return drawn


def _linear(module: nn.Module) -> dict[str, nn.Module]:
    from torch.nn import Linear  # why here: see apply_
    from transformers.pytorch_utils import Conv1D

    return {name: m for name, m in module.named_modules() if isinstance(m, (Linear, Conv1D))}
