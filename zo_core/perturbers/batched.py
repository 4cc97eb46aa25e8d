"""All points of a look in one forward pass: the minibatch tiled, each copy with its own weights.

The idea of FZOO's batched forward (arXiv 2506.09034, section 3). The objective runs on n copies of
the minibatch, laid end to end. Only modules that own trained tensors differ between points: the
input of each is cut into n slices along dimension 0, every slice runs with the weights of its
point (perturbed, and put back bit for bit), and the outputs are joined. All else, attention for
one, sees one batch n times as large. It pays where a small batch leaves the device idle, and costs
n times the activations; joining needs the largest module's output twice.

What is a batch and what is shared, for a module called with tensors: R rows (dimension 0 of what
the model itself was called with, a multiple of n) are a batch, and so is a multiple of R in two or
more dimensions (tokens laid flat); 1 row (position ids) belongs to all points, and its output is
repeated for each of their rows. Everything else is refused, and so are one-dimensional indices,
which may be positions: nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_leaves, tree_unflatten

from zo_core import noise
from zo_core.base import (
    Cost,
    Data,
    Look,
    Objective,
    Param,
    Params,
    Point,
    Span,
    finite,
    no_span,
    scaled,
)
from zo_core.perturbers.by_rows import ByRows, Looks
from zo_core.perturbers.elsewhere import Elsewhere, Ready, Stand, room_bytes, room_for
from zo_core.perturbers.in_forward import InForward

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Batched:
    """The perturber of one forward pass a look; exact. The objective must offer ``tiled``."""

    staying = None  # all of theta is never elsewhere

    @property
    def exact(self) -> bool:
        """Yes."""
        return True

    def losses(
        self, params: Params, objective: Objective, look: Look, span: Span = no_span
    ) -> list[float]:
        """Return the objective at each point; theta is left as found, bit for bit.

        Counts as one query a point: that many minibatches are evaluated. A look at the anchor
        set, or at a single point, is as with restore='exact'.

        Raises:
            ValueError: a module with trained tensors was called with something that can't be cut,
                the tensors belong to no module, or the objective can't be tiled.

        """
        points = look.points
        if look.data != "batch" or len(points) == 1:
            return InForward().losses(params, objective, look, span)
        if params.module is None:
            raise ValueError(
                "restore='batched' cuts the inputs of modules, and these tensors belong to none: "
                "pass Params.of(module), or use restore='exact'."
            )
        groups = _groups(points)
        copies, together = max(map(len, groups)), len(groups) == 1
        with room_for(params, look.distribution, copies, together=together) as room:
            sliced = _Sliced(params.module, room, points, groups)
            with sliced, span("forward"), torch.inference_mode():
                seen = objective.tiled(len(points))
            room.check()
        if seen.shape != (len(points),):
            raise ValueError(
                f"Expected tiled({len(points)}) to return that many losses, got shape "
                f"{tuple(seen.shape)}."
            )
        return [finite(loss) for loss in seen.cpu()]

    def retrace_(self, params: Params, look: Look) -> None:
        """Do nothing: nothing is left behind."""

    def cost(self, params: Params, points: Sequence[Point], data: Data = "batch") -> Cost:
        """One query a point, and one noise pass a term of a point; of two that are opposite, one.

        Scratch: copies of a module's weights, two of them where points are opposite.
        """
        if data != "batch" or len(points) == 1:
            return InForward().cost(params, points)
        groups = _groups(points)
        copies = max(map(len, groups))
        scratch = room_bytes(params, copies, together=len(groups) == 1)
        if copies > 1:  # a distribution may need a piece for the second sign
            scratch += noise.piece_bytes(params, 1)
        passes = sum(len(points[group[0]]) for group in groups)
        return Cost(len(points), noise_passes=passes, scratch_bytes=scratch)


def _groups(points: Sequence[Point]) -> list[tuple[int, ...]]:
    """Return the indices of points, two together where the second is minus the first."""
    groups: list[tuple[int, ...]] = []
    alone: dict[Point, int] = {}  # and in which group
    for index, point in enumerate(points):
        opposite = alone.pop(scaled(point, -1.0), None) if point else None
        if opposite is not None:
            groups[opposite] += (index,)
            continue
        alone[tuple(point)] = len(groups)
        groups.append((index,))
    return groups


class _Sliced:
    """While it is open, modules with trained tensors run slice by slice."""

    def __init__(
        self,
        module: nn.Module,
        room: Elsewhere,
        points: Sequence[Point],
        groups: Sequence[tuple[int, ...]],
    ) -> None:
        self._module, self._room, self._points, self._groups = module, room, points, groups
        self._rows = self._depth = 0
        self._point: int | None = None  # whose slice is running
        self._handles: list[Any] = []
        self._lent: list[tuple[ByRows, Stand]] = []
        self._ready: list[tuple[Sequence[Param], Ready]] = []
        self._own_forwards: dict[nn.Module, Any] = {}

    def __enter__(self) -> _Sliced:
        for module in self._module.modules():
            self._handles += [
                # First of all hooks: those of others may call modules of the model themselves.
                module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True),
                module.register_forward_hook(self._leave, always_call=True),
            ]
        for module, group in self._room.groups.items():
            self._handles += [
                module.register_forward_pre_hook(partial(self._prepare, group)),
                module.register_forward_hook(partial(self._discard, group), always_call=True),
            ]
        for module, own in self._room.owners.items():
            layer, forward = self._room.layers.get(module), module.forward
            if layer:
                self._handles += [
                    module.register_forward_pre_hook(partial(self._lend, layer)),
                    module.register_forward_hook(
                        partial(self._take_back, layer), always_call=True
                    ),
                ]
            # What looks at a weight in place of a module's forward pass respects one of its own,
            # and it would take the bias of theta for that of every point.
            if not layer or layer.others:
                self._own_forwards[module] = module.__dict__.get("forward")
                by_slices = partial(self._run, module, own, forward)
                module.__dict__["forward"] = forward if layer else by_slices
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        while self._lent:
            self._take_back(self._lent[-1][0])
        for module, forward in self._own_forwards.items():
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._depth == 0:
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim()]
            self._rows = tensors[0].shape[0] if tensors else 0
            if not self._rows or self._rows % len(self._points):
                raise ValueError(
                    f"Expected {type(module).__name__} to be called with {len(self._points)} "
                    f"copies of a minibatch, got {self._rows} rows; use restore='exact'."
                )
        self._depth += 1

    def _leave(self, *_: Any) -> None:
        self._depth -= 1

    def _run(
        self, module: nn.Module, own: Sequence[Param], forward: Forward, *args: Any, **kwargs: Any
    ) -> Any:
        if self._point is not None:  # inside a slice of a module around this one
            return self._at((self._point,), own, [partial(forward, *args, **kwargs)])[0]
        leaves, spec = tree_flatten((args, kwargs))
        cut = [self._cut(leaf, module) for leaf in leaves]
        rows = 0 if any(len(set(map(id, parts))) > 1 for parts in cut) else self._rows
        slices = []
        for point in range(len(self._points)):
            a, k = tree_unflatten([parts[point] for parts in cut], spec)
            slices.append(partial(forward, *a, **k))
        seen: dict[int, Any] = {}
        try:
            for group in self._groups:
                outputs = self._at(group, own, [slices[point] for point in group])
                seen |= zip(group, outputs, strict=True)
        finally:
            self._point = None
        in_turn = [seen[point] for point in range(len(seen))]
        return _joined([_repeated(one, rows // len(seen), module) for one in in_turn], module)

    def _prepare(self, group: Sequence[Param], *_: Any) -> None:
        points = [self._points[index] for index in self._groups[0]]
        self._ready.append((group, self._room.prepare(group, points)))

    def _discard(self, group: Sequence[Param], *_: Any) -> None:
        if self._ready and self._ready[-1][0] is group:  # else it was never prepared: that raised
            self._ready[-1][1].back_()
            self._ready.pop()

    def _lend(self, layer: ByRows, *_: Any) -> None:
        """Give a large layer the rows of all points, or of that whose slice is running."""
        if self._point is not None:
            looks = Looks.at(self._points[self._point])
        else:
            module, count = layer.layer, len(self._points)
            looks = Looks(
                self._points,
                self._groups,
                lambda x: self._cut(x, module),
                lambda ys: _joined(
                    [_repeated(y, self._rows // count, module) for y in ys], module
                ),
                partial(self._biases, layer) if layer.others else None,
            )
        self._room.runs((layer.weight, *layer.others))
        self._lent.append((layer, self._room.lend(layer, looks)))
        self._lent[-1][1].at_(0)

    def _take_back(self, layer: ByRows, *_: Any) -> None:
        if self._lent and self._lent[-1][0] is layer:  # else it was never lent: that raised
            self._lent[-1][1].back_()
            self._lent.pop()

    def _biases(self, layer: ByRows, group: Sequence[int]) -> list[Tensor]:
        points = [self._points[index] for index in group]
        bias = layer.others[0].tensor
        stand, seen = self._room.stand(layer.others if points[0] else (), points), []
        try:
            for turn in range(len(points)):
                stand.at_(turn)
                seen.append(bias.detach().clone())
        finally:
            stand.back_()
        return seen

    def _at(
        self, group: Sequence[int], own: Sequence[Param], forwards: Sequence[Forward]
    ) -> list[Any]:
        """Run a slice for each point of a group, all of which are made at once."""
        points = [self._points[index] for index in group]
        self._room.runs(own)
        stand = self._room.stand(own if points[0] else (), points)
        seen = []
        try:
            for turn, (index, forward) in enumerate(zip(group, forwards, strict=True)):
                stand.at_(turn)
                self._point = index
                seen.append(self._room.apart(forward()))
        finally:
            stand.back_()
        return seen

    def _cut(self, leaf: Any, module: nn.Module) -> list[Any]:
        """Return the slice of each point."""
        n = len(self._points)
        if isinstance(leaf, _PLAIN):
            return [leaf] * n
        if isinstance(leaf, Tensor):
            index = leaf.dim() == 1 and not leaf.is_floating_point()
            rows = leaf.shape[0] if leaf.dim() else 1
            if not index and (rows == self._rows or (leaf.dim() > 1 and rows % self._rows == 0)):
                return list(leaf.chunk(n))
            if rows == 1:
                return [leaf] * n
        what = tuple(leaf.shape) if isinstance(leaf, Tensor) else type(leaf).__name__
        raise ValueError(
            f"restore='batched' can't tell how {n} points share the input {what} of a "
            f"{type(module).__name__}: expected {self._rows} rows, or 1. Use restore='exact'."
        )


def _repeated(output: Any, rows: int, module: nn.Module) -> Any:
    """Give ``rows`` rows to an output that was made of shared inputs alone (0: leave it)."""
    if not rows:
        return output
    leaves, spec = tree_flatten(output)
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != 1:
            raise ValueError(
                f"restore='batched' can't tell how points share the output of a "
                f"{type(module).__name__} that was called without a batch. Use restore='exact'."
            )
    return tree_unflatten([leaf.expand(rows, *leaf.shape[1:]) for leaf in leaves], spec)


def _joined(outputs: Sequence[Any], module: nn.Module) -> Any:
    """Lay the outputs of all points end to end, tensor by tensor."""
    flat: list[tuple[list[Any], TreeSpec]] = [tree_flatten(output) for output in outputs]
    joined = []
    for leaves in zip(*(leaves for leaves, _ in flat), strict=True):
        if all(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves):
            joined.append(torch.cat(leaves))
        elif all(isinstance(leaf, _PLAIN) and leaf == leaves[0] for leaf in leaves):
            joined.append(leaves[0])
        else:
            raise ValueError(
                f"restore='batched' can't join the outputs of a {type(module).__name__}: expected "
                "tensors with a batch. Use restore='exact'."
            )
    return tree_unflatten(joined, flat[0][1])
