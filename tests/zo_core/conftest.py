"""Small problems and instruments that the laws are checked with."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zo_core import Closure, Params


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages made while it is on; ``peak`` and what is ``live``.

    No operation shows that a storage is given another size: large ones are looked at each time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._bytes: dict[int, int] = {}  # of those that were made meanwhile
        self._total = 0

    @property
    def live(self) -> int:
        self._look()
        return self._total

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):  # what comes in from outside is not ours to count
                storage = tensor.untyped_storage()
                self._known.setdefault(storage._cdata, weakref.ref(storage))
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        self._look()
        self.peak = max(self.peak, self._total)
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        known = self._known.get(key)
        if known is not None and known() is not None:
            return
        self._bytes[key] = storage.nbytes()
        self._total += storage.nbytes()
        self._known[key] = weakref.ref(storage, lambda _: self._gone(key))

    def _look(self) -> None:
        for key, size in list(self._bytes.items()):
            storage = self._known[key]() if size >= LARGE or size == 0 else None
            if storage is not None and storage.nbytes() != size:
                self._bytes[key] = storage.nbytes()
                self._total += storage.nbytes() - size

    def _gone(self, key: int) -> None:
        self._total -= self._bytes.pop(key)
        self._known.pop(key, None)


LARGE = 64 << 10


@pytest.fixture
def live_bytes() -> type[LiveBytes]:
    return LiveBytes


class Block(nn.Module):
    """Holds some of the tensors; its forward pass is their part of the loss, once a row."""

    def __init__(self, tensors: dict[str, Tensor], target: dict, scale: dict) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, tensor.requires_grad))
        self.target, self.scale = target, scale

    def forward(self, rows: Tensor) -> Tensor:  # (R,) -> (R,) float64
        terms = [
            (0.5 * self.scale[n] * (t.to(torch.float64) - self.target[n]) ** 2).sum()
            for n, t in self._parameters.items()
        ]
        return torch.stack(terms).sum().expand(len(rows))


class Problem(nn.Module):
    """A quadratic over tensors of several shapes: f = sum_i 1/2 a_i (theta_i - t_i)^2.

    In modules, like a model: a perturber may work on each as it runs.
    """

    SHAPES = (
        ("layers.0", {"weight": (3, 5), "bias": (5,)}),
        ("layers.1", {"weight": (3, 5)}),
        ("head", {"scalar": ()}),
    )

    def __init__(self, dtype: torch.dtype, requires_grad: bool, in_module: bool = True) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        def block(shapes: dict) -> Block:
            tensors = {
                n: (draw(*s) * 0.5).to(dtype).requires_grad_(requires_grad)
                for n, s in shapes.items()
            }
            target = {n: draw(*s).to(torch.float64) for n, s in shapes.items()}
            scale = {n: (draw(*s).abs() + 0.1).to(torch.float64) for n, s in shapes.items()}
            return Block(tensors, target, scale)

        blocks = {name: block(shapes) for name, shapes in self.SHAPES}
        self.layers = nn.ModuleList([blocks["layers.0"], blocks["layers.1"]])
        self.head = blocks["head"]
        self.params = Params(self.named_parameters(), self if in_module else None)
        self.calls = 0
        self.objective = Closure(self.loss, self.loss, tiled=self.tiled)

    def forward(self, rows: Tensor | None = None) -> Tensor:  # (R,) -> (R,) float64, or ()
        if rows is None:
            return self(torch.ones(1))[0]
        return torch.stack([block(rows) for block in (*self.layers, self.head)]).sum(0)

    def loss(self) -> Tensor:
        return self.tiled(1)[0]

    def tiled(self, copies: int) -> Tensor:
        """Return the loss of every copy; each counts as a call."""
        self.calls += copies
        return self(torch.ones(copies))

    @property
    def tensors(self) -> dict[str, Tensor]:
        return dict(self.named_parameters())

    def gradient(self) -> Tensor:
        """Return the exact gradient, flat, float64."""
        with torch.no_grad():
            parts = [
                block.scale[n] * (t.to(torch.float64) - block.target[n])
                for block in (*self.layers, self.head)
                for n, t in block._parameters.items()
            ]
        return torch.cat([p.reshape(-1) for p in parts])

    def least(self, moves: Tensor, bound: Tensor) -> float:
        """Return the lowest loss with some entries moved, and none beyond ``bound``: (d,) both."""
        held = [(b, n) for b in (*self.layers, self.head) for n in b._parameters]
        scale, target = (
            torch.cat([getattr(b, kind)[n].reshape(-1) for b, n in held])
            for kind in ("scale", "target")
        )
        end = torch.where(moves, torch.clamp(target, -bound, bound), self.flat().double())
        return float((0.5 * scale * (end - target) ** 2).sum())

    def flat(self) -> Tensor:
        return torch.cat([t.detach().reshape(-1).clone() for t in self.params.tensors])


@pytest.fixture
def problem() -> Callable[..., Problem]:
    def make(
        dtype: torch.dtype = torch.float32, requires_grad: bool = False, in_module: bool = True
    ) -> Problem:
        return Problem(dtype, requires_grad, in_module)

    return make
