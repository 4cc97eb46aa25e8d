"""Over how many devices a run is laid out, and how: part of what is traced.

* ``pipeline``: blocks in a row over n devices, one of them working at a time, as transformers'
  ``device_map`` does it. For methods without a backward pass.
* ``fsdp``: every weight in n pieces, gathered block by block while it is used (torch's FSDP2,
  ``fully_shard``). For first-order methods; the batch is that of each device.

What each layout can't hold is refused here, in words, before anything is traced.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from bench.records import RunSpec, UserError, unknown

Layout = Literal["pipeline", "fsdp"]

WORDS: dict[str, str] = {"pipeline": "layer pipeline", "fsdp": "FSDP"}
"""What a layout is called in tables and messages."""


@dataclass(frozen=True)
class Parallel:
    """A layout over several devices.

    Args:
        layout: ``pipeline`` or ``fsdp``.
        count: devices, 2 or more.
        memory: bytes of weights that each device of a pipeline takes, the first ones filled
            first (``max_memory`` of ``infer_auto_device_map``); balanced where absent.

    Raises:
        UserError: an unknown layout, fewer than 2 devices, or ``memory`` with FSDP.

    """

    layout: Layout
    count: int
    memory: int | None = None

    def __post_init__(self) -> None:
        """Refuse what is no layout."""
        if self.layout not in get_args(Layout):
            raise unknown("layout", self.layout, get_args(Layout))
        if self.count < 2:
            raise UserError(
                f"Expected 2 devices or more for a {self.words}, got {self.count}. Leave the "
                "layout out for one device."
            )
        if self.memory is not None and self.layout == "fsdp":
            raise UserError("FSDP shares weights out evenly: leave 'memory' out.")

    @property
    def words(self) -> str:
        """The layout's name in words."""
        return WORDS[self.layout]

    @property
    def ranks(self) -> int:
        """Processes that talk by NCCL: a pipeline is one process, which copies."""
        return self.count if self.layout == "fsdp" else 1

    def told(self) -> str:
        """Return it in words, with the number of devices."""
        return f"{self.words} over {self.count}"


def layout_for(spec: RunSpec) -> Layout:
    """Return the layout that a run's method takes."""
    return "fsdp" if _needs_gradient(spec) else "pipeline"


def parallel_for(spec: RunSpec, count: int) -> Parallel | None:
    """Return a run's layout over so many devices; None on one, which needs none.

    Raises:
        UserError: fewer than 1, or the method is unknown.

    """
    if count < 1:
        raise UserError(f"Expected 1 GPU or more, got {count}.")
    return None if count == 1 else Parallel(layout_for(spec), count)


def refuse(spec: RunSpec, parallel: Parallel) -> None:
    """Refuse a method that can't run so.

    Raises:
        UserError: with what to take instead.

    """
    first = _needs_gradient(spec)
    if first and parallel.layout == "pipeline":
        raise UserError(
            f"Method '{spec.method}' has a backward pass, which is not laid out as a layer "
            "pipeline here: all cards but one would wait. Take layout 'fsdp', or a zeroth-order "
            "method such as 'mezo'."
        )
    if not first and parallel.layout == "fsdp":
        raise UserError(
            f"Method '{spec.method}' has no backward pass and works on whole weights, of which "
            "FSDP leaves a piece on each device. Take layout 'pipeline'."
        )


def _needs_gradient(spec: RunSpec) -> bool:
    from zo_core import methods  # why here: it imports torch

    try:
        method: Any = methods.build(spec.method, **spec.options)
    except ValueError as error:
        raise UserError(str(error)) from error
    return bool(method.needs_gradient)
