"""Ask a language model's head for something smaller than all its logits.

The model runs as its family wrote it, and its head is called as ever, with whatever hooks it has
(perturbations, for one); only what the head computes is replaced while a model is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

Asked = Callable[[nn.Linear, "Tensor"], "Tensor"]
"""Given the head and the hidden states (..., H), return what is wanted of them."""


@contextmanager
def head_asked(module: Any, asked: Asked | None) -> Iterator[list[Tensor]]:
    """While open, the head of ``module`` returns ``asked(head, hidden)``; yields what it returned.

    The list stays empty where the head can't be asked: it is no plain linear layer (a quantised or
    adapted one), or somebody else runs it in a way of their own (a perturber that makes several
    models of one), or nothing is ``asked``. Then the model's logits are what they always are.
    """
    find = getattr(module, "get_output_embeddings", None)
    head: nn.Module | None = find() if find else None
    seen: list[Tensor] = []
    if head is None:
        yield seen
        return
    # Rows picked out of a sequence don't lie together; with frozen weights torch multiplies them
    # one by one then: 140 times as slow in bfloat16 on the CPU.
    handle = head.register_forward_pre_hook(_together)
    replaced = False
    if asked and type(head) is nn.Linear and "forward" not in head.__dict__:
        linear: nn.Linear = head
        head.__dict__["forward"] = lambda hidden: _kept(seen, asked(linear, hidden))
        replaced = True
    try:
        yield seen
    finally:
        handle.remove()
        if replaced:
            del head.__dict__["forward"]


def _together(head: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return (inputs[0].contiguous(), *inputs[1:])


def _kept(seen: list[Tensor], answer: Tensor) -> Tensor:
    seen.append(answer)
    return answer
