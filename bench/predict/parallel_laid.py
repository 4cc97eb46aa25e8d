"""The seam between a trace and a layout: a model is made, laid out, and only then seen."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from torch import nn

from bench.predict.parallel import Parallel
from bench.records import RunSpec, UserError

if TYPE_CHECKING:
    from bench.predict.tracer import Tracer


class Holder(Protocol):
    """What holds a model: everything that was built, or what loading gave."""

    @property
    def module(self) -> Any:
        """The model."""


M = TypeVar("M", bound=Holder)


class Lay(Protocol):
    """Makes a model and lays it out over devices; its parameters are new objects then."""

    def __call__(self, make: Callable[[], M], /) -> M:
        """Return what ``make`` returns, its module laid out."""


@contextmanager
def laid_out(spec: RunSpec, parallel: Parallel | None, tracer: Tracer) -> Iterator[Lay | None]:
    """Yield what lays a run's model out over several devices; None for one. Not in fake mode.

    Raises:
        UserError: torch can't shard an operation of the method.

    """
    # Why here: seconds to import, and one device needs neither.
    if parallel is None:
        yield None
    elif parallel.layout == "pipeline":
        from bench.predict import parallel_pipeline as pipeline

        spread = partial(pipeline.lay_out, count=parallel.count, memory=parallel.memory)
        yield partial(_laid, tracer, spread)
    else:
        from bench.predict import parallel_fsdp as fsdp

        with fsdp.alone_of(parallel.count) as mesh, fsdp.watched(tracer), _told(spec):
            spread = partial(fsdp.shard, mesh=mesh, autocast=spec.autocast)
            yield partial(_laid, tracer, spread)


@contextmanager
def _told(spec: RunSpec) -> Iterator[None]:
    """Say in words what torch can't shard."""
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        told = re.search(r"(?:Operator|propagation failed for) (aten\.\w+)", str(error))
        if told is None:
            raise
        raise UserError(
            f"Method '{spec.method}' can't be sharded by this torch: {told[1]} takes no sharded "
            "tensors. Take 'ft_adamw', or one device."
        ) from error


def _laid(tracer: Tracer, spread: Callable[[nn.Module], None], make: Callable[[], M], /) -> M:
    """Lay a model out unseen, and count what is of it on each device."""
    with tracer.paused():
        made = make()
        spread(made.module)
        gc.collect()
    tracer.adopt([*made.module.parameters(), *made.module.buffers()])
    return made
