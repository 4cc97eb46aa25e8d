"""A built-in model in another depth, or with other attention: for shallow traces and tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from unittest.mock import patch

from bench.models import catalogue, checkpoint

Attention = Literal["sdpa", "eager"]

_DEPTH = "num_hidden_layers"  # as all families of the catalogue call it


@dataclass(frozen=True)
class Shape:
    """What differs from the model as it is named; nothing by default.

    Args:
        layers: how many blocks there are.
        attention: who computes it: torch's fused kernels, or the plain formula ("eager").
        config: further fields of the transformers configuration.

    """

    layers: int | None = None
    attention: Attention | None = None
    config: dict[str, Any] = field(default_factory=dict)

    def told(self) -> str:
        """Return it in words; "" where nothing differs."""
        return ", ".join(f"{name} = {value}" for name, value in self._fields().items())

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While open, models are built so, in this process."""
        fields = self._fields()
        if not fields:
            yield
            return
        read, read_config = catalogue.read, checkpoint.read_config

        def entries() -> dict[str, catalogue.Entry]:
            return {name: _with(entry, fields) for name, entry in read().items()}

        def config(where: str) -> Any:
            found = read_config(where)
            found.update(fields)
            return found

        with (
            patch.object(catalogue, "read", entries),
            patch.object(checkpoint, "read_config", config),
        ):
            yield

    def _fields(self) -> dict[str, Any]:
        fields = dict(self.config)
        if self.layers is not None:
            fields[_DEPTH] = self.layers
        if self.attention is not None:
            fields["attn_implementation"] = self.attention
        return fields


def layers_of(model: str) -> int:
    """Return how many blocks the model ``model`` has.

    Raises:
        UserError: no such model.

    """
    from bench.models.resolve import resolve  # why here: it imports torch

    module = (
        resolve(model)
        .load_shape(dtype="float32", device="meta", head_classes=_head_of(model))
        .module
    )
    depth = getattr(module.config.get_text_config(), _DEPTH)  # type: ignore[operator, union-attr]
    return int(depth)


def _head_of(model: str) -> int | None:
    entry = catalogue.read().get(model)
    return 2 if entry is not None and entry.kind == "encoder" else None


def _with(entry: catalogue.Entry, fields: dict[str, Any]) -> catalogue.Entry:
    if entry.config is None:
        return entry
    return replace(entry, config={**entry.config, **fields})
