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

from zo_core.base import Cost, Look, Objective, Param, Params, Point, Span, finite, no_span
from zo_core.perturbers.in_forward import InForward, Perturbed, owners, saved_bytes

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.Size)

Forward = Callable[..., Any]


@dataclass(frozen=True)
class Batched:
    """The perturber of one forward pass a look; exact. The objective must offer ``tiled``."""

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
        with _Sliced(params, look) as sliced, span("forward"), torch.inference_mode():
            seen = objective.tiled(len(points))
        sliced.check()
        if seen.shape != (len(points),):
            raise ValueError(
                f"Expected tiled({len(points)}) to return that many losses, got shape "
                f"{tuple(seen.shape)}."
            )
        return [finite(loss) for loss in seen.cpu()]

    def retrace_(self, params: Params, look: Look) -> None:
        """Do nothing: nothing is left behind."""

    def cost(self, params: Params, points: Sequence[Point]) -> Cost:
        """One query a point and one noise pass a term; a module's saved weights are scratch."""
        passes = sum(len(point) for point in points)
        return Cost(len(points), noise_passes=passes, scratch_bytes=saved_bytes(params))


class _Sliced:
    """While it is open, modules with trained tensors run slice by slice."""

    def __init__(self, params: Params, look: Look) -> None:
        assert params.module is not None
        self._module, self._owners = params.module, owners(params)
        self._weights = [
            Perturbed(params, look, point) if point else None for point in look.points
        ]
        self._rows = self._depth = 0
        self._point: int | None = None  # whose slice is running
        self._handles: list[Any] = []
        self._own_forwards: dict[nn.Module, Any] = {}

    def __enter__(self) -> _Sliced:
        for module in self._module.modules():
            self._handles += [
                # First of all hooks: those of others may call modules of the model themselves.
                module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True),
                module.register_forward_hook(self._leave, always_call=True),
            ]
        for module, own in self._owners.items():
            self._own_forwards[module] = module.__dict__.get("forward")
            module.__dict__["forward"] = partial(self._run, module, own, module.forward)
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        for module, forward in self._own_forwards.items():
            del module.__dict__["forward"]
            if forward is not None:
                module.__dict__["forward"] = forward

    def check(self) -> None:
        """Refuse to have left a tensor out."""
        for weights in self._weights:
            if weights is not None:
                weights.check()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._depth == 0:
            tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.dim()]
            self._rows = tensors[0].shape[0] if tensors else 0
            if not self._rows or self._rows % len(self._weights):
                raise ValueError(
                    f"Expected {type(module).__name__} to be called with {len(self._weights)} "
                    f"copies of a minibatch, got {self._rows} rows; use restore='exact'."
                )
        self._depth += 1

    def _leave(self, *_: Any) -> None:
        self._depth -= 1

    def _run(
        self, module: nn.Module, own: Sequence[Param], forward: Forward, *args: Any, **kwargs: Any
    ) -> Any:
        if self._point is not None:  # inside a slice of a module around this one
            return self._at(self._point, own, partial(forward, *args, **kwargs))
        leaves, spec = tree_flatten((args, kwargs))
        cut = [self._cut(leaf, module) for leaf in leaves]
        rows = 0 if any(len(set(map(id, parts))) > 1 for parts in cut) else self._rows
        seen = []
        try:
            for point in range(len(self._weights)):
                self._point = point
                a, k = tree_unflatten([parts[point] for parts in cut], spec)
                seen.append(self._at(point, own, partial(forward, *a, **k)))
        finally:
            self._point = None
        return _joined([_repeated(one, rows // len(seen), module) for one in seen], module)

    def _at(self, point: int, own: Sequence[Param], forward: Forward) -> Any:
        weights = self._weights[point]
        if weights is None:
            return forward()
        mine = weights.perturb_(own)
        try:
            return forward()
        finally:
            weights.restore_(mine)

    def _cut(self, leaf: Any, module: nn.Module) -> list[Any]:
        """Return the slice of each point."""
        n = len(self._weights)
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
