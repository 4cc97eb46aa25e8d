"""Blocks of a model: which tensors are perturbed, scaled or trained together.

The layers of a transformer are numbered in the names of their tensors, and each is a block. What
stands beside them (embeddings, final norm, head) is a block for each module that leaves the path
to the layers: RoBERTa-large has 24 layers, ``roberta.embeddings`` and ``lm_head``, which are the
26 groups of the MeZO paper (arXiv 2305.17333, appendix B.3).

>>> import torch
>>> names = ["model.embed_tokens.weight", "model.layers.0.q.weight", "model.layers.0.q.bias",
...          "model.layers.1.q.weight", "model.norm.weight", "lm_head.weight"]
>>> for block in blocks(Params((name, torch.zeros(2)) for name in names)):
...     print(block.name, block.elements)
model.embed_tokens 2
model.layers.0 4
model.layers.1 2
model.norm 2
lm_head 2
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass

from zo_core.base import Param, Params

_Path = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Block:
    """Tensors that belong together, named by what their names have in common."""

    name: str
    params: tuple[Param, ...]

    @property
    def keys(self) -> frozenset[int]:
        """The tensors' keys."""
        return frozenset(p.key for p in self.params)

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return sum(p.tensor.numel() for p in self.params)


def blocks(params: Params) -> tuple[Block, ...]:
    """Cut ``params`` into blocks, in the order of their first tensors; every tensor is in one."""
    layers = {path[:-1] for p in params if (path := _numbered(_path(p))) is not None}
    found: dict[_Path, list[Param]] = {}
    for param in params:
        found.setdefault(_block(_path(param), layers), []).append(param)
    return tuple(Block(".".join(path), tuple(held)) for path, held in found.items())


def _path(param: Param) -> _Path:
    return tuple(param.name.split("."))


def _numbered(path: _Path) -> _Path | None:
    """Return ``path`` up to and including its first number; None where it has none."""
    at = next((i for i, part in enumerate(path) if part.isdigit()), None)
    return None if at is None else path[: at + 1]


def _block(path: _Path, layers: Collection[_Path]) -> _Path:
    """Return the path of the block: a layer's, or one step off the way to the layers."""
    shared = max((_common(path, layer) for layer in layers), default=0)
    return _numbered(path) or path[: shared + 1]


def _common(one: _Path, other: _Path) -> int:
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
