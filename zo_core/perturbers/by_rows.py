"""Large layers of one matrix, perturbed a few rows at a time: no copy of the matrix.

An output embedding or a wide linear layer needs a few rows of its weights at a time, and a table
only those that are looked up. So a tile of rows is written perturbed, used while it is in the
cache, and written over: for both signs, where two opposite points are looked at, from one draw.

While such a layer runs, its ``weight`` is an object that stands for the matrix and makes rows
where they are multiplied or looked up. So that goes as well for what somebody else computes of the
weight in place of the layer's forward pass: losses over a vocabulary, a slice of it at a time, or
the logits of a few label words.

Layers of exactly the types ``nn.Linear`` and ``nn.Embedding`` alone, as what others compute is
theirs to say; and above a size, as small ones are in the cache anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._pytree import tree_map

from zo_core.base import Param, Point, is_fake

LARGE = 1 << 22
"""Elements of a tile on the CPU, and of a matrix above which there are tiles: L3 holds them."""
DEVICE_LARGE = 1 << 26
"""The same elsewhere: a product of fewer rows would leave a device idle."""

_MULTIPLE = 256  # rows of a tile: products of odd ones are slower by a tenth

Rows = range | Tensor
"""Rows that lie together, or any, (k,) int64."""


@dataclass(frozen=True, eq=False)
class ByRows:
    """One such layer."""

    layer: nn.Linear | nn.Embedding
    weight: Param
    others: tuple[Param, ...]  # its bias, if that is trained

    @property
    def tile(self) -> tuple[int, int]:
        """Shape of a tile; a table needs none: its rows are written where they are wanted."""
        m, n = self.weight.tensor.shape
        if isinstance(self.layer, nn.Embedding):
            return 0, n
        rows = _large(self.weight.tensor) // n // _MULTIPLE * _MULTIPLE
        return min(m, max(_MULTIPLE, rows)), n


@dataclass(frozen=True)
class Looks:
    """The points that a layer runs at, and how its inputs and outputs are shared out to them."""

    points: Sequence[Point]
    groups: Sequence[tuple[int, ...]]  # indices of points; of two the second is minus the first
    cut: Callable[[Tensor], Sequence[Tensor]]  # an input, one part a point
    joined: Callable[[Sequence[Tensor]], Tensor]  # outputs of an input that all points share
    biases: Callable[[Sequence[int]], Sequence[Tensor]] | None = None  # where they differ as well

    @classmethod
    def at(cls, point: Point) -> Looks:
        """Return a look at one point."""
        return cls((point,), ((0,),), lambda x: [x], lambda outputs: outputs[0])


Written = Callable[[ByRows, Sequence[Point], Rows], AbstractContextManager[list[Tensor]]]
"""Opens rows at a point, or at two of which the second is minus the first; then they are gone."""


@dataclass(frozen=True, eq=False)
class PerturbedRows:
    """What a layer has for its weight while it runs: rows of the matrix, at every point of a look.

    It can be cut to rows (``[low:high]``, ``[indices]``), cast, multiplied with
    (``functional.linear``) and looked up in (``functional.embedding``): noise is drawn for rows
    that are used. For all else it is made whole: that takes undeclared room, and a single point.
    """

    of: ByRows
    looks: Looks
    written: Written
    rows: Rows
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """Rows and columns."""
        return torch.Size((len(self.rows), self.of.weight.tensor.shape[1]))

    @property
    def device(self) -> torch.device:
        """Where the matrix is."""
        return self.of.weight.tensor.device

    @property
    def requires_grad(self) -> bool:
        """No: there is no backward pass through it."""
        return False

    def to(self, dtype: torch.dtype) -> PerturbedRows:
        """Cast it, where it is used."""
        return replace(self, dtype=dtype)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """Cut it to rows, where these are not made before they are used; else make it whole."""
        if isinstance(index, Tensor) and _picks(index):
            return replace(self, rows=self.picked(index))
        if isinstance(self.rows, range) and isinstance(index, slice) and index.step in (None, 1):
            return replace(self, rows=self.rows[index])
        return self.whole()[index]

    def picked(self, index: Tensor) -> Tensor:
        """Return which rows of the matrix those at ``index``, (k,) int64, are: (k,) int64."""
        index = _checked(index, len(self)).to(self.device)
        return index + self.rows.start if isinstance(self.rows, range) else self.rows[index]

    @contextmanager
    def made(self, at: Sequence[Point], rows: Rows) -> Iterator[list[Tensor]]:
        """Open ``rows`` of the matrix at a point or two, as ``Written`` does, on any device."""
        if isinstance(rows, range) or not at[0] or kernel_goes_by_rows(self.device):
            with self.written(self.of, at, rows) as made:
                yield made
        else:
            yield self._gathered(at, rows)

    def _gathered(self, at: Sequence[Point], rows: Tensor) -> list[Tensor]:
        """Make the tiles that hold ``rows`` in turn, and keep those: room for them twice."""
        weight, size = self.of.weight.tensor, self.of.tile[0]
        found = [weight.new_zeros(len(rows), weight.shape[1]) for _ in at]
        tiles = range(0, len(weight), size)
        held = tiles if is_fake(rows) else {tiles[i] for i in (rows // size).tolist()}
        for low in sorted(held):
            high = min(low + size, len(weight))
            inside = ((rows >= low) & (rows < high))[:, None]
            places = (rows - low).clamp(0, high - low - 1)
            with self.written(self.of, at, range(low, high)) as parts:
                for out, part in zip(found, parts, strict=True):
                    torch.where(inside, part[places], out, out=out)
        return found

    def __getattr__(self, name: str) -> Any:
        """Return what a tensor of that name has."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.whole(), name)

    @classmethod
    def __torch_function__(
        cls,
        function: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Do what torch was asked to do with one of these."""
        kwargs = kwargs or {}
        if function is functional.linear:
            return _product(*args, **kwargs)
        if function is functional.embedding:
            return _looked_up(*args)
        as_tensors = tree_map(lambda x: x.whole() if isinstance(x, cls) else x, (args, kwargs))
        return function(*as_tensors[0], **as_tensors[1])

    def whole(self) -> Tensor:
        """Return all of its rows, in memory of their own."""
        if len(self.looks.points) > 1:
            raise ValueError(
                "restore='batched' expected a large weight to be cut by rows, multiplied or "
                "looked up, and it is used in another way. Use restore='exact'."
            )
        with self.made(self.looks.points, self.rows) as (rows,):
            return rows.to(self.dtype, copy=True)


def _product(x: Tensor, weight: PerturbedRows, bias: Tensor | None = None) -> Tensor:
    """Return ``functional.linear`` of them, of every point with its part of ``x``."""
    looks, layer, rows = weight.looks, weight.of, weight.rows
    inputs = looks.cut(x)
    tile = (isinstance(rows, range) and layer.tile[0]) or len(rows)
    out: Tensor | None = None
    for group in looks.groups:
        at = [looks.points[i] for i in group]
        biases = looks.biases(group) if looks.biases else [bias] * len(group)
        for low in range(0, len(rows), tile):
            high = min(low + tile, len(rows))
            with weight.made(at, rows[low:high]) as tiles:
                for i, own, part in zip(group, biases, tiles, strict=True):
                    some = None if own is None else own[low:high]
                    y = functional.linear(inputs[i], part.to(weight.dtype), some)
                    if len(inputs) == 1 and tile >= len(rows):
                        return y
                    out = _room(y, inputs, len(rows)) if out is None else out
                    _places(out, inputs)[i][..., low:high] = y
    assert out is not None
    return looks.joined(out.unbind()) if _shared(inputs) else out


def _shared(inputs: Sequence[Tensor]) -> bool:
    return len(inputs) > 1 and inputs[0] is inputs[1]


def _room(y: Tensor, inputs: Sequence[Tensor], columns: int) -> Tensor:
    """Return room for the outputs of all points, laid end to end, or apart where one is shared."""
    sizes = (*y.shape[:-1], columns)
    if _shared(inputs):
        return y.new_empty(len(inputs), *sizes)
    return (
        y.new_empty(sum(map(len, inputs)), *sizes[1:]) if len(inputs) > 1 else y.new_empty(sizes)
    )


def _places(out: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    if len(inputs) == 1:
        return [out]
    return out.unbind() if _shared(inputs) else out.chunk(len(inputs))


def _looked_up(ids: Tensor, weight: PerturbedRows, *_: Any) -> Tensor:
    """Return ``functional.embedding`` of them."""
    looks = weight.looks
    inputs, outs = looks.cut(ids), []
    for point, part in zip(looks.points, inputs, strict=True):
        rows = weight.picked(part.reshape(-1).long())
        with weight.made((point,), rows) as (found,):
            outs.append(found.view(*part.shape, found.shape[1]).to(weight.dtype))
    return looks.joined(outs) if len(outs) == 1 or _shared(inputs) else torch.cat(outs)


def _picks(index: Tensor) -> bool:
    return index.dim() == 1 and index.dtype == torch.int64


def _checked(rows: Tensor, count: int) -> Tensor:
    if not is_fake(rows) and rows.numel():
        low, high = (int(end) for end in rows.aminmax())
        if low < 0 or high >= count:
            raise IndexError(f"Expected tokens below {count}, got {low} to {high}.")
    return rows


def by_rows(module: nn.Module, own: Sequence[Param]) -> ByRows | None:
    """Return the layer where it is large and can be worked on by rows, else None."""
    if type(module) not in (nn.Linear, nn.Embedding) or "forward" in module.__dict__:
        return None
    assert isinstance(module, nn.Linear | nn.Embedding)
    weight = next((p for p in own if p.tensor is module._parameters.get("weight")), None)
    if weight is None or not weight.tensor.is_contiguous() or not _known(weight.tensor):
        return None
    if weight.tensor.numel() <= _large(weight.tensor):
        return None
    if isinstance(module, nn.Embedding):
        # max_norm writes to the table.
        if module.max_norm is not None or not kernel_goes_by_rows(weight.tensor.device):
            return None
    return ByRows(module, weight, tuple(p for p in own if p is not weight))


def kernel_goes_by_rows(device: torch.device) -> bool:
    """Whether rows that do not lie together cost what they are: elsewhere each is a launch."""
    return device.type == "cpu"


def _known(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) or is_fake(tensor)


def _large(tensor: Tensor) -> int:
    return LARGE if tensor.device.type == "cpu" else DEVICE_LARGE
