"""Work whose peak is known to the byte: the table of what memory trackers get wrong.

Each piece allocates tensors on the CPU and lets them go; ``known_bytes`` is the largest sum of
their bytes alive at one time. The cases are those that plain sampling of the resident set reads
as 0 in a process that is warm: glibc serves them from heap that it kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

KIB, MIB = 1 << 10, 1 << 20

LAYERS, WIDTH, ROWS = 4, 1024, 512


@dataclass(frozen=True)
class Case:
    """A piece of work."""

    name: str
    known_bytes: int
    work: Callable[[], object]
    """What it returns is kept until its peak was read."""
    many_small: bool = False
    """Whether the tensors' own Python objects are a share of what is on the heap."""


def cases() -> list[Case]:
    """Return the table; the tensors that some of it works on are allocated now."""
    return [
        Case("one of 64 MiB", 64 * MIB, lambda: _gone(64 * MIB)),
        Case("one of 8 MiB", 8 * MIB, lambda: _gone(8 * MIB)),
        Case("10 of 32 MiB", 320 * MIB, lambda: _many(10, 32 * MIB)),
        Case("3 temporaries of 64 MiB", 192 * MIB, _temporaries(64 * MIB)),
        Case("perturbing 4 layers of 16 MiB", 16 * MIB, _perturb(4, 16 * MIB)),
        Case("backpropagation, 4 layers", backprop_bytes(), _backprop()),
        # Last: glibc serves large blocks from the heap that many small ones leave, and keeps them.
        Case("20,000 of 16 KiB", 20_000 * 16 * KIB, lambda: _many(20_000, 16 * KIB), True),
    ]


def backprop_bytes() -> int:
    """Return the peak of :func:`_backprop` by arithmetic.

    A layer's output is R W floats, its weight W W, its bias W. Forward keeps the outputs of all
    layers. The last output is let go when the loss is made (a sum needs its shape alone), the
    others when their layer's gradients were made. Most is alive while the first layer's gradients
    are made: all weights and biases, the gradient that comes from above, and nothing else of the
    forward pass.
    """
    output, weight, bias = 4 * ROWS * WIDTH, 4 * WIDTH * WIDTH, 4 * WIDTH
    return LAYERS * (weight + bias) + output


def _tensor(size: int) -> Tensor:
    return torch.ones(size, dtype=torch.uint8)


def _gone(size: int) -> None:
    _tensor(size)


def _many(n: int, size: int) -> list[Tensor]:
    return [_tensor(size) for _ in range(n)]


def _temporaries(size: int) -> Callable[[], None]:
    def work() -> None:
        one, two, three = _many(3, size)
        del one, two, three

    return work


def _perturb(layers: int, size: int) -> Callable[[], None]:
    """Add noise to one layer after another, a tensor of noise at a time, as MeZO's paper does."""
    several = _many(layers, size)

    def work() -> None:
        for layer in several:
            layer.add_(torch.ones_like(layer))

    return work


def _backprop() -> Callable[[], None]:
    model = torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    inputs = torch.ones(ROWS, WIDTH)

    def work() -> None:
        model(inputs).sum().backward()
        model.zero_grad()

    return work
