"""A model in pieces on several devices: torch's FSDP2, on a process group with one rank here.

Every block is a unit of ``fully_shard``, and what is in no block is the root's. torch's defaults
are taken: a block's weights are freed after its forward pass and gathered again for its backward
pass, the root's stay. Under autocast weights are gathered in its dtype and gradients are summed in
float32 (``MixedPrecisionPolicy``).

Nothing is sent. What is allocated for it (a gathered block, a block's gradients before they are
scattered) FSDP2 allocates itself, in the step that is traced.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp._fully_shard import _fsdp_param_group as groups
from torch.distributed.tensor._sharding_prop import ShardingPropagator

from bench.predict.parallel_pipeline import blocks
from bench.records import UserError

if TYPE_CHECKING:
    from bench.predict.tracer import Tracer


@contextmanager
def alone_of(count: int) -> Iterator[DeviceMesh]:
    """While open, this process is the first of ``count`` that send nothing. Not in fake mode.

    Raises:
        UserError: this process is one of a real group already.

    """
    # Why here: torch's only process group without peers lies among its tests' parts.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    if dist.is_initialized():
        raise UserError(
            "FSDP is traced in a process that is in no process group, got one that is."
        )
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)
    try:
        yield init_device_mesh("cpu", (count,))
    finally:
        dist.destroy_process_group()


def shard(module: nn.Module, mesh: DeviceMesh, autocast: str | None) -> None:
    """Shard ``module`` over the ranks of ``mesh``, in place; parameters are new objects after it.

    Args:
        module: a model, whole, on the CPU.
        mesh: the ranks.
        autocast: the dtype of a mixed-precision run, if it is one.

    """
    policy = MixedPrecisionPolicy()
    if autocast is not None:
        policy = MixedPrecisionPolicy(getattr(torch, autocast), torch.float32)
    for block in blocks(module).values():
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=policy)


@contextmanager
def watched(tracer: Tracer) -> Iterator[None]:
    """While open, FSDP2's own blocks are told apart, and what it only looks up is not seen."""
    real_meta = ShardingPropagator._propagate_tensor_meta_non_cached
    reduce: Callable[..., Any] = groups.foreach_reduce  # type: ignore[attr-defined]  # imported

    def meta(*args: Any, **kwargs: Any) -> Any:  # shapes of whole tensors: nothing is allocated
        with tracer.paused():
            return real_meta(*args, **kwargs)

    def gathering(real: Callable[..., Any]) -> Callable[..., Any]:
        def gather(*args: Any, **kwargs: Any) -> Any:
            with tracer.labelled("weights"):
                return real(*args, **kwargs)

        return gather

    def reducing(params: Any, grads: Any, *args: Any, **kwargs: Any) -> Any:
        tracer.relabel(grads, "gradients")
        with tracer.labelled("gradients"):
            return reduce(params, grads, *args, **kwargs)

    patches: list[tuple[Any, str, Any]] = [
        (ShardingPropagator, "_propagate_tensor_meta_non_cached", meta),
        (groups, "foreach_reduce", reducing),
        *(
            (groups, name, gathering(getattr(groups, name)))
            for name in ("foreach_all_gather", "foreach_all_gather_copy_out")
        ),
    ]
    with ExitStack() as stack, warnings.catch_warnings():
        # Of blocks that return a view, in case somebody wrote to it: transformers does not.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
        for target, name, value in patches:
            stack.enter_context(patch.object(target, name, value))
        stack.enter_context(tracer.resizes())
        yield
