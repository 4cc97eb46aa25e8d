"""A model laid out over several devices, blocks in a row; each part moves its inputs to its own.

The map is that of ``accelerate.infer_auto_device_map``, with three differences:

1. Balanced means the smallest share of weights with which the map needs no more devices.
2. The head stands on the first device, beside the token embedding: tied weights can't be in two
   places, and the loss is computed by the head, where the targets are.
3. Inputs are moved by plain hooks. ``dispatch_model`` replaces ``forward``, which hides the head
   from who asks it for less than all logits (``bench.tasks.kit.output_head``).

Devices are ``cpu``, ``cpu:1``, ``cpu:2`` ...: fake tensors keep them apart, and an operation
between two of them fails as on GPUs.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import infer_auto_device_map  # type: ignore[import-untyped]  # it has none
from accelerate.utils import send_to_device  # type: ignore[import-untyped]  # it has none
from torch import nn

from bench.records import UserError

_BLOCK = re.compile(r"\.\d+$")
_FINEST = 1000
"""Parts of the weights to which the balanced share of a device is searched for."""


def blocks(module: nn.Module) -> dict[str, nn.Module]:
    """Return the blocks of a transformers model by name, wherever in ``module`` it is."""
    kinds = {
        kind for one in module.modules() for kind in getattr(one, "_no_split_modules", None) or ()
    }
    return {
        name: one
        for name, one in module.named_modules()
        if type(one).__name__ in kinds and _BLOCK.search(name)
    }


def lay_out(module: nn.Module, count: int, memory: int | None) -> None:
    """Spread ``module`` over ``count`` devices, in place; parameters are new objects after it.

    Args:
        module: a model on the CPU, made of fake tensors.
        count: devices.
        memory: bytes of weights on each, at most; None: balanced.

    Raises:
        UserError: fewer blocks than devices, or the weights don't fit into ``memory``.

    """
    own = blocks(module)
    if len(own) < count:
        raise UserError(
            f"A layer pipeline over {count} devices needs {count} blocks, got {len(own)}. Take "
            f"{len(own)} devices or fewer."
        )
    kinds = sorted({type(block).__name__ for block in own.values()})
    found = device_map(module, kinds, count, memory)
    _move(module, found)
    _hook(module, found)


def device_map(
    module: nn.Module, kinds: list[str], count: int, memory: int | None
) -> dict[str, int]:
    """Return the device of each part of ``module``: names of modules or of tensors.

    Args:
        module: the model.
        kinds: names of the classes that are not split.
        count: devices.
        memory: bytes of weights on each; None: as few as do.

    Raises:
        UserError: the weights don't fit into ``memory``.

    """
    total = sum(p.nbytes for p in module.parameters())
    if memory is not None:
        found = _map_within(module, kinds, count, memory)
        if found is None:
            raise UserError(
                f"{total} bytes of weights don't fit {count} devices with {memory} bytes for "
                "weights on each. Take more devices, or more memory on each."
            )
        return found
    fails, works, best = 0, 2 * total, None
    while works - fails > total // _FINEST:
        middle = (fails + works) // 2
        found = _map_within(module, kinds, count, middle)
        if found is None:
            fails = middle
        else:
            works, best = middle, found
    assert best is not None  # all of it fits twice its size
    return best


def _map_within(
    module: nn.Module, kinds: list[str], count: int, memory: int
) -> dict[str, int] | None:
    """Return the map with so many bytes a device; None where it does not hold all."""
    head = _head(module)
    beside = sum(p.nbytes for p in head[1].parameters()) if head and not _tied(module) else 0
    # A device before the first: on that it leaves room for whatever is loaded from a disk.
    room = {0: 0} | dict.fromkeys(range(1, count + 1), memory)
    room[1], room[count] = memory - beside, memory + beside  # the head comes last, and is moved
    try:
        with _unsaid():
            found: Mapping[str, Any] = infer_auto_device_map(
                module, max_memory=room, no_split_module_classes=kinds, clean_result=False
            )
    except (
        IndexError
    ):  # it looks for a tied tensor in vain whose module is placed: too little room
        return None
    if not all(isinstance(device, int) for device in found.values()):
        return None
    named = {name: device - 1 for name, device in found.items()}
    if head:
        named = {k: d for k, d in named.items() if not k.startswith(f"{head[0]}.")}
        named[head[0]] = 0
    return named


@contextmanager
def _unsaid() -> Iterator[None]:
    """Keep it from telling that this machine has no such devices, at every try."""
    log = logging.getLogger("accelerate.utils.modeling")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _head(module: Any) -> tuple[str, nn.Module] | None:
    find = getattr(module, "get_output_embeddings", None)
    head = (find() if find else None) or getattr(module, "head", None)
    return next(((n, m) for n, m in module.named_modules() if m is head), None) if head else None


def _tied(module: Any) -> bool:
    inside = {id(p) for p in module.get_input_embeddings().parameters()}
    head = _head(module)
    return head is not None and any(id(p) in inside for p in head[1].parameters())


def _device(index: int) -> torch.device:
    return torch.device("cpu", index) if index else torch.device("cpu")


def _of(name: str, found: Mapping[str, int]) -> int | None:
    """Return the device of what is called ``name``; None where its parts are on several."""
    while name not in found:
        if not name:
            return None
        name = name.rpartition(".")[0]
    return found[name]


def _move(module: nn.Module, found: Mapping[str, int]) -> None:
    """Put every tensor on its device; one that stands under several names on their first."""
    holders = [
        (table, own, tensor, _of(f"{name}.{own}" if name else own, found) or 0)
        for name, part in module.named_modules()
        for table in (part._parameters, part._buffers)
        for own, tensor in table.items()
        if tensor is not None
    ]
    first: dict[int, int] = {}
    for _, _, tensor, index in holders:
        first[id(tensor)] = min(index, first.get(id(tensor), index))
    moved: dict[int, Any] = {}
    for table, own, tensor, _ in holders:
        if first[id(tensor)] and id(tensor) not in moved:
            there = tensor.detach().to(_device(first[id(tensor)]))
            wanted = isinstance(tensor, nn.Parameter)
            moved[id(tensor)] = nn.Parameter(there, tensor.requires_grad) if wanted else there
        table[own] = moved.get(id(tensor), tensor)


def _hook(module: nn.Module, found: Mapping[str, int]) -> None:
    """Let each part move its inputs, and what spans several devices its output to the first."""
    for name, part in module.named_modules():
        index = _of(name, found)
        if name in found and index is not None:
            hook = partial(_inputs_moved, _device(index))
            part.register_forward_pre_hook(hook, with_kwargs=True)
        elif index is None:
            part.register_forward_hook(_output_moved)


def _inputs_moved(device: torch.device, _: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
    return send_to_device(args, device), send_to_device(kwargs, device)


def _output_moved(_: nn.Module, args: Any, output: Any) -> Any:
    return send_to_device(output, _device(0))
