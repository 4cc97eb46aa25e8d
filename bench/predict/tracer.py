"""Every block that a step allocates on fake tensors, seen where torch dispatches its operations.

A block is a storage: views and results in place share one. It is allocated when an operation
first returns a tensor on it, and freed when its last tensor dies, at the very place where the
real run would do so, since the same Python and the same autograd engine hold the tensors.

A storage that is resized (so FSDP gives back and takes up gathered weights, unseen where
operations are dispatched) is freed and allocated anew. Of a sharded tensor its piece here counts.

What this can't see: temporaries inside a kernel. What it corrects: while a dispatch mode is
active, the autograd engine adds up two gradients into a third tensor; the real engine adds the
second to the first in place (see ``_Sum``).
"""

from __future__ import annotations

import functools
import math
import re
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bench.predict.log import OUTSIDE_BLOCKS, Log, Work

_IN_BLOCK = re.compile(r"\.\d+\.")
_SCALAR = torch.ops.aten._local_scalar_dense.default
_NOTHING = torch.ops.aten._efficientzerotensor.default
"""The tangent of what has none: zeros without memory, made real where an operation needs them.
Fake tensors fail on them; here they are always real (a number's tangent is not)."""
_LOGSUMEXP = torch.ops.aten.logsumexp.default
_SUMS = {torch.ops.aten.sum.default, torch.ops.aten.sum.dim_IntList}
_ADD = torch.ops.aten.add.Tensor
_ARITHMETIC = {
    getattr(torch.ops.aten, name + place).Tensor
    for name in ("add", "sub", "mul", "div")
    for place in ("", "_")
}
_FUSED_SGD = torch.ops.aten._fused_sgd_.default
_NO_TRAFFIC = {"aten::empty", "aten::empty_like", "aten::new_empty", "aten::empty_strided"}

Component = Callable[[str, str], str]
"""Given phase and module of a new block, what it is for."""


@dataclass
class _Held:
    """A storage that lives: its block, and a reference that tells its end."""

    block: int
    ref: weakref.ref[Any]
    empty: bool = False
    """Whether it was resized to nothing: the block is freed already."""


@dataclass
class _Sum:
    """A sum whose first term may die before anything else happens: then it took its place.

    That is what the autograd engine's accumulation looks like from here, and how it tells the
    terms that nobody else holds, too.
    """

    key: int
    into: int
    record: Callable[[], int]
    dead: list[int] = field(default_factory=list)


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]  # as torch has it
    """While entered (after FakeTensorMode), writes what happens into ``log``.

    Args:
        log: where to.
        component: guesses what a block is for, from phase and module; corrected by ``relabel``.
        on_gpu: whether kernels of a GPU are emulated.

    """

    def __init__(self, log: Log, component: Component, on_gpu: bool = False) -> None:
        """See nothing yet."""
        super().__init__()  # type: ignore[no-untyped-call]  # see above
        self.log = log
        self._names: dict[int, str] = {}
        self.phase = "run"
        self._component = component
        self._on_gpu = on_gpu
        self._modules: list[str] = []
        self._live: dict[int, _Held] = {}
        self._sum: _Sum | None = None
        self._asked = 0
        self._times = 1.0
        self._paused = False
        self._label: str | None = None

    @contextmanager
    def span(self, phase: str) -> Iterator[None]:
        """Attribute what happens meanwhile to ``phase``."""
        self._settle()
        self.log.enter(phase)
        outer, self.phase = self.phase, phase
        try:
            yield
        finally:
            self._settle()
            self.phase = outer

    @contextmanager
    def inside(self, module: str) -> Iterator[None]:
        """Attribute what happens meanwhile to ``module``."""
        self._modules.append(module)
        try:
            yield
        finally:
            self._modules.pop()

    @contextmanager
    def labelled(self, component: str) -> Iterator[None]:
        """Say what all blocks are for that are allocated meanwhile."""
        outer, self._label = self._label, component
        try:
            yield
        finally:
            self._label = outer

    @contextmanager
    def paused(self) -> Iterator[None]:
        """See nothing of what happens meanwhile."""
        outer, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = outer

    def adopt(self, tensors: Iterable[Tensor]) -> None:
        """Count tensors that came to be while nothing was seen, as if they were allocated now."""
        for tensor in map(_here, tensors):
            if self._is_new(tensor):
                self._see(tensor, "adopted", ())

    @contextmanager
    def resizes(self) -> Iterator[None]:
        """See storages change their size."""
        real = torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, size: int) -> torch.UntypedStorage:
            real(storage, size)
            self._resized(storage)
            return storage

        with patch.object(torch.UntypedStorage, "resize_", resize_):
            yield

    @contextmanager
    def times(self, factor: float) -> Iterator[None]:
        """Count the work of what happens meanwhile so many times; 0 counts nothing."""
        outer, self._times = self._times, factor
        try:
            yield
        finally:
            self._times = outer

    def worked(self, dtype: str, flops: int, nbytes: int) -> None:
        """Count one operation."""
        work = self.log.work.setdefault(self.phase, Work())
        work.add(dtype, round(flops * self._times), round(nbytes * self._times))
        work.ops += round(self._times) - 1

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Follow which module runs."""
        register = torch.nn.modules.module
        handles = [
            register.register_module_forward_pre_hook(self._entered),
            register.register_module_forward_hook(self._left, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def built(self, module: torch.nn.Module) -> None:
        """Learn the names of modules: until then blocks are of none."""
        self._names = {id(part): name for name, part in module.named_modules()}
        outside = [p.nbytes for name, p in module.named_parameters() if not _IN_BLOCK.search(name)]
        self.log.facts[OUTSIDE_BLOCKS] = str(sum(outside))

    def relabel(self, tensors: Iterable[Tensor], component: str) -> None:
        """Say what the blocks of ``tensors`` are for."""
        self._settle()
        for tensor in map(_here, tensors):
            held = self._live.get(tensor.untyped_storage()._cdata)
            if held is not None:
                self.log.relabel(held.block, component)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and see what it returns."""
        kwargs = kwargs or {}
        if any(hasattr(kind, "__tensor_flatten__") for kind in types):
            return NotImplemented  # a sharded tensor: its pieces come here, one by one
        if self._paused:
            return func(*args, **kwargs)
        if func is _NOTHING and args[0]:
            with self:
                return torch.zeros(args[0], dtype=kwargs.get("dtype"), device=kwargs.get("device"))
        if func is _SCALAR:
            return self._scalar(func, args)
        if func is _LOGSUMEXP:
            with self:
                return _logsumexp(*args, **kwargs)
        if func in _SUMS:
            args = self._cast(args, kwargs)
        key = _made_of_others(func)
        if key is not None:
            with self:
                return func._op_dk(key, *args, **kwargs)
        held = self._promoted(args) if func in _ARITHMETIC and not self._on_gpu else None
        # On fake tensors torch would run the real kernel, on real memory of all the weights.
        out = None if func is _FUSED_SGD else func(*args, **kwargs)
        if self._sum is not None:
            self._settle()
        del held
        found = [out] if isinstance(out, Tensor) else tree_leaves(out)
        new = [t for t in found if isinstance(t, Tensor) and self._is_new(t)]
        for tensor in new:
            self._see(tensor, func, args)
        if new or not _is_view(func):
            self._count(func, args, kwargs, out, found)
        return out

    def _cast(self, args: Any, kwargs: Any) -> Any:
        """Copy what is summed to the dtype of the sum, as torch does before it reduces.

        Booleans become int64 so, eight times their size. A GPU alone widens 16 bits as it reads.
        """
        given = args[0]
        own = given.dtype if given.dtype.is_floating_point else torch.int64
        wanted = kwargs.get("dtype") or own
        reads = self._on_gpu and given.itemsize == 2 and wanted == torch.float32
        if wanted == given.dtype or reads:
            return args
        with self:
            return (given.to(wanted), *args[1:])

    def _promoted(self, args: Any) -> list[Tensor]:
        """Copy what has another dtype than the result of arithmetic, as the CPU does before it."""
        given = [arg for arg in args[:2] if isinstance(arg, Tensor)]
        if len(given) < 2 or given[0].dtype == given[1].dtype:
            return []
        wanted = torch.result_type(*given)
        with self:
            return [t.to(wanted) for t in given if t.dim() and t.dtype != wanted]

    def _scalar(self, func: Any, args: Any) -> Any:
        """Return a number of a tensor: the real one of a small constant, else one that is finite.

        Losses differ from one another, so that no difference of theirs vanishes.
        """
        try:
            return func(*args)
        except DataDependentOutputException:
            dtype = args[0].dtype
        if dtype == torch.bool:
            return False
        self._asked += 1
        return 1.0 + 2**-6 * (self._asked % 7) if dtype.is_floating_point else 1

    def _is_new(self, tensor: Tensor) -> bool:
        if tensor.device.type == "meta" or tensor.layout != torch.strided:
            return False
        return tensor.untyped_storage()._cdata not in self._live

    def _see(self, tensor: Tensor, func: Any, args: Any) -> None:
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        if key in self._live:
            return
        if not nbytes:
            return
        module = self._modules[-1] if self._modules else ""
        device, phase, op = tensor.device.index or 0, self.phase, str(func)
        component = self._label or self._component(phase, module)

        def record() -> int:
            return self.log.alloc(nbytes, device, phase, op, module, component)

        ref = weakref.ref(storage, lambda _: self._gone(key))
        into = self._accumulates_into(func, args, nbytes)
        if into is None:
            self._live[key] = _Held(record(), ref)
        else:
            self._live[key] = _Held(-1, ref)
            self._sum = _Sum(key, into, record)

    def _accumulates_into(self, func: Any, args: Any, nbytes: int) -> int | None:
        if func is not _ADD or torch._C._current_graph_task_id() < 0 or len(args) < 2:
            return None
        first = args[0]
        if not isinstance(first, Tensor) or not isinstance(args[1], Tensor):
            return None
        storage = first.untyped_storage()
        return storage._cdata if storage.nbytes() == nbytes else None

    def _gone(self, key: int) -> None:
        if self._sum is not None:
            self._sum.dead.append(key)
            if key == self._sum.into or key == self._sum.key:
                self._settle()
            return
        held = self._live.pop(key)
        if not held.empty:
            self.log.free(held.block, self.phase)

    def _resized(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = storage._cdata, storage.nbytes()
        self._settle()
        if self._paused or key not in self._live:
            return
        held = self._live[key]
        if not held.empty:
            self.log.free(held.block, self.phase)
        held.empty = not nbytes
        if nbytes:
            module = self._modules[-1] if self._modules else ""
            device = self.log.device_of(held.block)
            component = self._label or self._component(self.phase, module)
            held.block = self.log.alloc(nbytes, device, self.phase, "resize_", module, component)

    def _settle(self) -> None:
        """Decide about a sum that is waiting."""
        waiting, self._sum = self._sum, None
        if waiting is None:
            return
        if waiting.into in waiting.dead:
            block = self._live.pop(waiting.into).block
            waiting.dead.remove(waiting.into)
        else:
            block = waiting.record()
        self._live[waiting.key].block = block
        for key in waiting.dead:
            self._gone(key)

    def _entered(self, module: torch.nn.Module, _: Any) -> None:
        self._modules.append(self._names.get(id(module), ""))

    def _left(self, module: torch.nn.Module, _: Any, __: Any) -> None:
        self._modules.pop()

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any, found: list[Any]) -> None:
        name = func._schema.name
        if name in _NO_TRAFFIC or not self._times:
            return
        tensors = [t for t in found if isinstance(t, Tensor)]
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        packet = func._overloadpacket
        flops = 0
        if packet in flop_registry:
            flops = int(flop_registry[packet](*args, **kwargs, out_val=out))
        dtype = str((tensors or read)[0].dtype).removeprefix("torch.") if tensors or read else ""
        nbytes = sum(t.numel() * t.element_size() for t in (*read, *tensors))
        self.worked(dtype, flops, nbytes)


def _here(tensor: Tensor) -> Tensor:
    """Return what of a tensor is on this device: of a sharded one (a DTensor), its piece."""
    return getattr(tensor, "_local_tensor", tensor)


def _logsumexp(x: Tensor, dims: list[int], keepdim: bool = False) -> Tensor:
    """Do as torch's kernel on every device: by other operations, with a copy of ``x``."""
    maxes = x.amax(dims, True)
    most = maxes if keepdim else maxes.squeeze(dims)
    most.masked_fill_(most.abs() == math.inf, 0)
    return (x - maxes).exp_().sum(dims, keepdim).log_().add_(most)


@functools.cache
def _made_of_others(func: Any) -> DispatchKey | None:
    """Return the kernel of an operation that is made of others, to see these in its place.

    In inference mode all such come here whole. It is torch's own kernel that is taken: a
    decomposition for compilers (that of dropout copies) is not what runs.
    """
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    if func.namespace != "prim" and has_kernel(func.name(), "CompositeImplicitAutograd"):
        return DispatchKey.CompositeImplicitAutograd
    return None


@functools.cache
def _is_view(func: Any) -> bool:
    """Whether an operation returns a view of what it is given, and computes nothing."""
    returns = func._schema.returns
    return bool(returns) and all(
        r.alias_info is not None and not r.alias_info.is_write for r in returns
    )
