"""Small problems and instruments that the laws are checked with."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zo_core import Closure, Params


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages made while it is on; ``peak`` and what is ``live``."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, object] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):  # what comes in from outside is not ours to count
                storage = tensor.untyped_storage()
                self._known.setdefault(storage._cdata, weakref.ref(storage))
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return out

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._known.get(key)
        if known is not None and known() is not None:
            return
        self.live += size
        self.peak = max(self.peak, self.live)
        self._known[key] = weakref.ref(storage, lambda _: self._gone(key, size))

    def _gone(self, key: int, size: int) -> None:
        self.live -= size
        self._known.pop(key, None)


@pytest.fixture
def live_bytes() -> type[LiveBytes]:
    return LiveBytes


class Problem:
    """A quadratic over tensors of several shapes: f = sum_i 1/2 a_i (theta_i - t_i)^2."""

    def __init__(self, dtype: torch.dtype, requires_grad: bool) -> None:
        generator = torch.Generator().manual_seed(5)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        shapes = {"a.weight": (3, 5), "a.bias": (5,), "b.weight": (3, 5), "scalar": ()}
        self.tensors = {
            name: (draw(*s) * 0.5).to(dtype).requires_grad_(requires_grad)
            for name, s in shapes.items()
        }
        self.target = {name: draw(*s).to(torch.float64) for name, s in shapes.items()}
        self.scale = {name: (draw(*s).abs() + 0.1).to(torch.float64) for name, s in shapes.items()}
        self.params = Params(self.tensors.items())
        self.calls = 0
        self.objective = Closure(self.loss)

    def loss(self) -> Tensor:
        self.calls += 1
        terms = [
            (0.5 * self.scale[n] * (t.to(torch.float64) - self.target[n]) ** 2).sum()
            for n, t in self.tensors.items()
        ]
        return torch.stack(terms).sum()

    def gradient(self) -> Tensor:
        """Return the exact gradient, flat, float64."""
        with torch.no_grad():
            parts = [
                self.scale[n] * (t.to(torch.float64) - self.target[n])
                for n, t in self.tensors.items()
            ]
        return torch.cat([p.reshape(-1) for p in parts])

    def flat(self) -> Tensor:
        return torch.cat([t.detach().reshape(-1).clone() for t in self.tensors.values()])


@pytest.fixture
def problem() -> Callable[..., Problem]:
    def make(dtype: torch.dtype = torch.float32, requires_grad: bool = False) -> Problem:
        return Problem(dtype, requires_grad)

    return make
