"""A checkpoint in the Hugging Face format: a local directory, or a name on the hub."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.models.classes import auto_class, class_options
from bench.models.loaded import Kind
from bench.models.own_memory import own_weights_
from bench.models.quiet import quiet
from bench.models.random_weights import seeded
from bench.records import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


def read_config(where: str) -> PretrainedConfig:
    """Read the configuration of the directory or hub name ``where``.

    Raises:
        UserError: it can't be had, or is of a model type that transformers does not know.

    """
    from transformers import AutoConfig  # why here: seconds to import

    with _explained(where), quiet():
        config: PretrainedConfig = AutoConfig.from_pretrained(where)
    return config


def kind_of(config: PretrainedConfig, where: str) -> Kind:
    """Return whether the checkpoint is a causal or a masked language model, or an encoder.

    Its own ``architectures`` decide: RoBERTa, for one, could be any of them. A bare ``BertModel``
    of a family with masked language models is an encoder.

    Raises:
        UserError: it is none of them.

    """
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM  # why: seconds to import

    named = config.architectures or []
    if any(a.endswith(("ForMaskedLM", "ForPreTraining")) for a in named):
        return "masked"
    bare = any(a.endswith("Model") and "LM" not in a for a in named)
    if bare and type(config) in AutoModelForMaskedLM._model_mapping:
        return "encoder"
    if type(config) in AutoModelForCausalLM._model_mapping:
        return "causal"
    raise UserError(
        f"{where} is a '{config.model_type}' model, neither a causal nor a masked language model "
        "nor a text encoder. Choose another: zometer list models"
    )


def read_tokenizer(where: str) -> PreTrainedTokenizerBase | None:
    """Read the tokenizer beside the checkpoint, or None for a local directory without one."""
    from transformers import AutoTokenizer  # why here: seconds to import

    files = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "tokenizer.model")
    if Path(where).is_dir() and not any((Path(where) / file).is_file() for file in files):
        return None
    with _explained(where), quiet():
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where)
    return tokenizer


def read_weights(
    where: str, config: PretrainedConfig, kind: Kind, *, dtype: str, device: str
) -> PreTrainedModel:
    """Load the weights straight to ``device`` in ``dtype``; evaluation mode.

    On "meta" the files are fetched and their names checked, and nothing is held.

    Raises:
        UserError: they can't be had, or some are not in the checkpoint (transformers would draw
            them at random, and the run would not be of the model it says it is).

    """
    auto = auto_class(kind)
    placing = {} if device == "cpu" else {"device_map": {"": device}}
    # transformers initialises what it then overwrites; seeded keeps the caller's streams.
    random_on = "cpu" if device == "meta" else device
    with _explained(where), quiet(), seeded(0, random_on):
        model, report = auto.from_pretrained(
            where,
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            **placing,
            **class_options(kind, config),
        )
    wrong = sorted(report["missing_keys"]) + [m[0] for m in report["mismatched_keys"]]
    if wrong:
        what = "an encoder" if kind == "encoder" else f"a {kind} language model"
        whole = "" if kind == "encoder" else " with its language model head"
        raise UserError(
            f"{where} lacks {len(wrong)} of the model's weights (first: {wrong[0]}), so it can't "
            f"be run as {what}. Choose a checkpoint{whole}."
        )
    if device == "cpu":
        own_weights_(model)
    loaded: PreTrainedModel = model.requires_grad_(True).eval()
    return loaded


# Class of the error, as huggingface_hub names it -> what to tell; the first that fits.
_ADVICE = {
    "GatedRepoError": "needs its owner's leave: ask on its page, then log in: hf auth login",
    "RepositoryNotFoundError": "is not on the hub (or is private: hf auth login)",
    "LocalEntryNotFoundError": "is not in the local hub cache, and the hub can't be reached "
    "(is HF_HUB_OFFLINE set, or the network down?). Or name a local directory",
}


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Turn what transformers and the hub raise about ``where`` into one line with advice."""
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        if getattr(error, "errno", None) == errno.ENOMEM:
            raise  # a result, not a fault of the checkpoint
        chain: list[str] = []
        cause: BaseException | None = error
        while cause is not None:
            chain += [c.__name__ for c in type(cause).__mro__]
            cause = cause.__cause__ or cause.__context__
        what = "directory" if Path(where).is_dir() else "model"
        for name, advice in _ADVICE.items():
            if name in chain:
                raise UserError(f"The {what} '{where}' {advice}.") from error
        first = str(error).strip().split("\n")[0].rstrip(".")
        raise UserError(f"The {what} '{where}' can't be loaded: {first}.") from error
