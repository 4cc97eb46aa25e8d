"""The four figures of a traced step, and what they are made of. Bytes throughout.

=============  ==================================================  =============================
figure         counterpart on a GPU                                how it is known
=============  ==================================================  =============================
allocated      ``torch.cuda.max_memory_allocated``                 traced, rounded as torch does
reserved       ``max_memory_reserved``, ordinary and expandable    simulated allocator
least          the smallest memory that torch can work in          bisection over replays
process        NVML's figure: reserved + CUDA context + NCCL       calibrated constants: a band
=============  ==================================================  =============================

``traced`` is what the tensors themselves take, without rounding, workspace and kernels' own
temporaries: the counterpart of a profiler's allocation events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench.predict import calibration as constants
from bench.predict.allocator import Settings
from bench.predict.calibration import Band, Calibration
from bench.predict.kernels import events_with, temporaries, workspaces
from bench.predict.log import Log
from bench.predict.replay import least_capacity, replay

RESIDENT = ("weights", "gradients", "state")
"""Components that stay from step to step; what else is at the peak comes and goes."""


@dataclass(frozen=True)
class PhaseFigures:
    """Peaks while a phase was the innermost one."""

    phase: str
    traced: int
    allocated: int
    reserved: int
    reserved_expandable: int
    components: dict[str, int]
    """At the phase's traced peak."""


@dataclass(frozen=True)
class Figures:
    """What one device needs."""

    device: int
    traced: int
    allocated: int
    reserved: int
    reserved_expandable: int
    least: int
    least_expandable: int
    process: Band
    process_expandable: Band
    workspace: int
    """Of cuBLAS, in all of the figures but ``traced``."""
    temporaries: int
    """What kernels' own temporaries add to ``allocated``; unverified."""
    outside: Band
    """Context and NCCL: ``process`` is ``reserved`` and this."""
    phases: tuple[PhaseFigures, ...]
    components: dict[str, int]
    """At the traced peak; ``workspace`` is beside them."""
    peak_phase: str
    """Where the most is allocated."""

    @property
    def peak_component(self) -> str:
        """The largest component that comes and goes, or ``weights`` if nothing else counts.

        Nothing counts that is less than a hundredth of the peak.
        """
        rest = {name: size for name, size in self.components.items() if name != "weights"}
        if not rest or sum(rest.values()) * 100 < self.traced:
            return "weights"
        return max(rest, key=lambda name: (rest[name], name))

    def beside(self, outside: Band) -> Figures:
        """Return the figures with other bytes outside of torch."""
        return replace(
            self,
            outside=outside,
            process=outside + self.reserved,
            process_expandable=outside + self.reserved_expandable,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain data, for a record or for ``--json``."""
        return {**asdict(self), "peak_component": self.peak_component}


def figures(
    log: Log,
    device: int = 0,
    *,
    calibration: Calibration | None = None,
    ranks: int = 1,
) -> Figures:
    """Return the four figures of one device.

    Args:
        log: the traced step.
        device: its index in the log.
        calibration: constants outside of the tensors; the packaged ones if not given. Of the
            workspaces the default one is taken.
        ranks: processes that communicate by NCCL; 1: none do.

    """
    calibration = calibration or constants.read()
    native, large = Settings(), Settings(expandable=True)
    space = workspaces(log, device, calibration.workspace_of(None))
    asked = events_with(log, device, [*space, *temporaries(log, device)])
    plain = replay(events_with(log, device, space), native)
    real, grown = replay(asked, native), replay(asked, large)
    outside = calibration.context + calibration.communicators(ranks)
    traced = log.peaks_by_phase(device)
    phases = tuple(
        PhaseFigures(
            phase,
            traced.get(phase, 0),
            real.allocated[phase],
            real.reserved[phase],
            grown.reserved[phase],
            log.at_peak(device, phase) if phase in traced else {},
        )
        for phase in real.allocated
    )
    return Figures(
        device=device,
        traced=log.live_peak(device),
        allocated=real.allocated_peak,
        reserved=real.reserved_peak,
        reserved_expandable=grown.reserved_peak,
        least=least_capacity(asked, native),
        least_expandable=least_capacity(asked, large),
        process=outside + real.reserved_peak,
        process_expandable=outside + grown.reserved_peak,
        workspace=sum(extra.nbytes for extra in space),
        temporaries=real.allocated_peak - plain.allocated_peak,
        outside=outside,
        phases=phases,
        components=log.at_peak(device),
        peak_phase=max(traced, key=lambda phase: traced[phase], default=""),
    )


def all_figures(
    log: Log, *, devices: Sequence[int] | None = None, **options: Any
) -> list[Figures]:
    """Return the figures of every device of a log; ``options`` as for :func:`figures`."""
    return [figures(log, d, **options) for d in (log.devices() if devices is None else devices)]
