"""Which class of transformers a model of each kind is built from."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from bench.models.loaded import Kind

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def auto_class(kind: Kind) -> Any:
    """Return transformers' auto class of ``kind``."""
    import transformers  # why here: seconds to import

    return {
        "causal": transformers.AutoModelForCausalLM,
        "masked": transformers.AutoModelForMaskedLM,
        "encoder": transformers.AutoModel,
    }[kind]


def class_options(kind: Kind, config: PretrainedConfig) -> dict[str, bool]:
    """Return what the class takes besides the configuration: an encoder leaves out its pooler.

    No classification head of ours reads the pooler (see ``WithHead``), so it would be perturbed
    and counted for nothing.
    """
    if kind != "encoder":
        return {}
    takes = inspect.signature(auto_class(kind)._model_mapping[type(config)].__init__).parameters
    return {"add_pooling_layer": False} if "add_pooling_layer" in takes else {}
