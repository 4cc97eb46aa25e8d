"""Large layers of one matrix, perturbed a few rows at a time: no copy of the matrix.

An output embedding or a wide linear layer needs a few rows of its weights at a time, and a table
only those that are looked up. So a tile of rows is written perturbed, used while it is in the
cache, and written over: for both signs, where two opposite points are looked at, from one draw.

Layers of exactly the types ``nn.Linear`` and ``nn.Embedding`` alone, as what others compute is
theirs to say; and above a size, as small ones are in the cache anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from zo_core.base import Distribution, Param, Piece, Point, is_fake

LARGE = 1 << 22
"""Elements of a tile on the CPU, and of a matrix above which there are tiles: L3 holds them."""
DEVICE_LARGE = 1 << 26
"""The same elsewhere: a product of fewer rows would leave a device idle."""

_MULTIPLE = 256  # rows of a tile: products of odd ones are slower by a tenth


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

    def run(
        self,
        along: Distribution,
        points: Sequence[Point],
        inputs: Sequence[Tensor],
        tiles: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        room: Room,
    ) -> list[Tensor]:
        """Return the layer's output at each point.

        Args:
            along: the distribution.
            points: one, or two of which the second is minus the first.
            inputs: of the layer, one a point.
            tiles: of shape ``tile``, one a point.
            biases: perturbed already, one a point.
            room: where an output goes, given its index and the output of the first tile.

        """
        if isinstance(self.layer, nn.Embedding):
            pairs = zip(points, inputs, strict=True)
            return [self._looked_up(along, point, ids) for point, ids in pairs]
        weight = self.weight.tensor.detach()
        outs: list[Tensor] = []
        for start in range(0, len(weight), len(tiles[0])):
            end = min(start + len(tiles[0]), len(weight))
            cut = [tile[: end - start] for tile in tiles]
            if not is_fake(weight):
                piece = Piece(self.weight, weight[start:end].view(-1), start * weight.shape[1])
                with torch.inference_mode(False), torch.no_grad():
                    along.write(piece, [tile.view(-1) for tile in cut], points[0])
            for k, (x, tile, bias) in enumerate(zip(inputs, cut, biases, strict=True)):
                y = functional.linear(x, tile, None if bias is None else bias[start:end])
                if start == 0:
                    outs.append(room(k, y))
                outs[k][..., start:end] = y
        return outs

    def alone(self, index: int, first: Tensor) -> Tensor:
        """Return a ``room`` for the output, given that of the first tile."""
        return first.new_empty(*first.shape[:-1], self.weight.tensor.shape[0])

    def _looked_up(self, along: Distribution, point: Point, ids: Tensor) -> Tensor:
        table = self.weight.tensor.detach()
        out = table.new_empty(*ids.shape, table.shape[1])
        if not is_fake(table) and ids.numel():
            low, high = (int(end) for end in ids.aminmax())
            if low < 0 or high >= len(table):
                raise IndexError(f"Expected tokens below {len(table)}, got {low} to {high}.")
            flat = out.view(-1, table.shape[1])
            along.write_rows(self.weight, ids.reshape(-1).long(), (flat,), point)
        return out


Room = Callable[[int, Tensor], Tensor]


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
        # max_norm writes to the table; and no kernel but the CPU's goes by rows.
        if module.max_norm is not None or weight.tensor.device.type != "cpu":
            return None
    return ByRows(module, weight, tuple(p for p in own if p is not weight))


def _known(tensor: Tensor) -> bool:
    return type(tensor) in (Tensor, nn.Parameter) or is_fake(tensor)


def _large(tensor: Tensor) -> int:
    return LARGE if tensor.device.type == "cpu" else DEVICE_LARGE
