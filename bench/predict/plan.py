"""How many GPUs it takes. One is traced; several are ESTIMATED from it, by these rules.

**Layer pipeline** (methods without a backward pass; blocks laid out over n devices, one working at
a time). Each device holds::

    resident / n + the rest,   and the first   resident / layers   more

resident: weights, and what the method keeps in their shape. One block more covers the uneven cut
and the embedding. The rest (activations, logits, noise scratch) counts in full on each, since it
goes from device to device.

**FSDP, full shard** (first-order methods; the batch is that of each device)::

    resident / n + unsharded + the rest          resident: weights, gradients, optimiser state
    everything / n                               while the optimiser updates, all of it is sharded

unsharded: three blocks' weights in forward and backward (the one in use, the one that is fetched
ahead, one block's gradients before they are scattered), and twice the weights that are in no block
(embeddings, head: they stay gathered, and their gradients are scattered last). Autocast's 16-bit
copies, which one GPU keeps of all weights through the forward pass, are of those blocks alone.

In a step weights are gathered twice and gradients scattered once: 3 weights (n - 1) / n over half
of the link's bandwidth (vendors count both directions). The low figure of its time has all of that
hidden behind arithmetic, the expected one half, the high one nothing. What a pipeline sends,
activations, is not counted.

Both: what the allocator reserves beyond grows in proportion; every process has its CUDA context,
and under FSDP its NCCL communicator. A real trace of either plan replaces the estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from bench.predict import calibration, fits
from bench.predict.calibration import Band, Calibration
from bench.predict.figures import RESIDENT, Figures, PhaseFigures
from bench.predict.fits import Fit
from bench.predict.gpus import Gpu
from bench.predict.prediction import Prediction
from bench.predict.roofline import Cost, Estimate

Layout = Literal["one GPU", "layer pipeline", "FSDP"]

_UNSHARDED_BLOCKS = 3
_UNSHARDED_ROOT = 2
_TRANSFERS = 3


@dataclass(frozen=True)
class Plan:
    """The fewest GPUs of one kind that hold a run."""

    fit: Fit
    layout: Layout
    quality: Literal["traced", "estimated"]
    """``estimated``: by the rules of this file, or carried on from fewer layers; not traced."""
    needs: tuple[Figures, ...]
    cost: Cost
    """Of the whole run on so many GPUs."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for ``--json``."""
        return {
            **self.fit.as_dict(),
            "layout": self.layout,
            "quality": self.quality,
            "devices": [need.as_dict() for need in self.needs],
            "cost": self.cost.as_dict(),
        }


def plan(
    prediction: Prediction,
    gpu: Gpu,
    *,
    steps: int,
    counts: Iterable[int] = fits.COUNTS,
    constants: Calibration | None = None,
) -> Plan | None:
    """Return the smallest plan on GPUs of one kind; None if no count holds the run.

    Args:
        prediction: the run, traced on one GPU.
        gpu: the card.
        steps: of training, for the cost.
        counts: the numbers of GPUs to try, rising.
        constants: what a process holds beside its tensors; the packaged ones if not given.

    """
    known: dict[int, tuple[Figures, ...]] = {}

    def at(count: int) -> tuple[Figures, ...] | None:
        needs = spread(prediction, gpu, count, constants)
        if needs is not None:
            known[count] = needs
        return needs

    found = fits.smallest_count(at, gpu, counts)
    if found is None:
        return None
    layout = layout_of(prediction, found.count)
    hours = prediction.cost(gpu, steps=steps, gpus=found.count)
    if layout == "FSDP":
        # Each of n works on a batch of its own in the time that one would take, so n times the
        # examples: hours are those of so many steps of n batches.
        hours = replace(hours, notes=(*hours.notes, "the batch is that of each GPU"))
        hours = _sent(hours, prediction, gpu, found.count, steps)
    known_whole = found.count == 1 and prediction.whole
    quality: Literal["traced", "estimated"] = "traced" if known_whole else "estimated"
    return Plan(found, layout, quality, known[found.count], hours)


def _sent(cost: Cost, prediction: Prediction, gpu: Gpu, count: int, steps: int) -> Cost:
    """Return the cost with what full sharding sends."""
    weights = prediction.on(gpu)[0].components.get("weights", 0)
    seconds = _TRANSFERS * weights * (count - 1) / count / (gpu.link_bandwidth / 2)
    sent = Estimate(0.0, seconds / 2, seconds)
    hours = cost.gpu_hours + sent * (steps * count / 3600)
    price = None if gpu.price_per_hour is None else hours * gpu.price_per_hour
    phases = {**cost.phases, "communication": sent}
    return replace(cost, step=cost.step + sent, phases=phases, gpu_hours=hours, price=price)


def layout_of(prediction: Prediction, count: int) -> Layout:
    """Return how a run is laid out over so many GPUs."""
    if count == 1:
        return "one GPU"
    return "FSDP" if "backward" in prediction.work else "layer pipeline"


def spread(
    prediction: Prediction, gpu: Gpu, count: int, constants: Calibration | None = None
) -> tuple[Figures, ...] | None:
    """Return the figures of each of ``count`` devices; None where there are fewer blocks."""
    needs = prediction.on(gpu)
    if count == 1:
        return needs
    if count > prediction.layers:
        return None
    fsdp = layout_of(prediction, count) == "FSDP"
    context = constants or calibration.read()
    outside = context.context + context.communicators(count if fsdp else 1)
    made = []
    for device in range(count):
        if fsdp:
            share = _fsdp(prediction, needs[0], count)
        else:
            share = _pipeline(count, prediction.layers if device == 0 else None)
        made.append(replace(_scaled(needs[0], share, outside), device=device))
    return tuple(made)


Share = Callable[[PhaseFigures], dict[str, int]]
"""What one device holds of each component at the peak of a phase."""


def _pipeline(count: int, layers: int | None) -> Share:
    def share(phase: PhaseFigures) -> dict[str, int]:
        return {
            name: -(-size // count) + (-(-size // layers) if layers else 0)
            if name in RESIDENT
            else size
            for name, size in phase.components.items()
        }

    return share


def _fsdp(prediction: Prediction, needs: Figures, count: int) -> Share:
    weights, layers = needs.components.get("weights", 0), prediction.layers
    copies = weights // 2 if prediction.spec.autocast else 0
    root = prediction.outside_blocks
    gathered = _UNSHARDED_BLOCKS * (weights - root) // layers + _UNSHARDED_ROOT * root

    def share(phase: PhaseFigures) -> dict[str, int]:
        every = phase.phase in ("update", "load")
        parts = {
            name: -(-size // count) if every or name in RESIDENT else size
            for name, size in phase.components.items()
        }
        if not every:
            parts["weights"] = parts.get("weights", 0) + gathered
            if parts.get("activations", 0) >= copies:
                parts["activations"] = parts.get("activations", 0) - copies
        return parts

    return share


def _scaled(needs: Figures, share: Share, outside: Band) -> Figures:
    """Return the figures of one device of several: its parts, the allocator's in proportion."""
    phases = []
    for phase in needs.phases:
        parts = share(phase)
        size = sum(parts.values())
        beside = phase.allocated - phase.traced
        # Reserved memory stays from phase to phase, so it is no measure of one of them.
        grown = (size + beside) / max(phase.allocated, 1)
        phases.append(
            PhaseFigures(
                phase.phase,
                size,
                size + beside,
                round(phase.reserved * grown),
                round(phase.reserved_expandable * grown),
                parts,
            )
        )
    top = max(phases, key=lambda phase: phase.traced)
    allocated = max(phase.allocated for phase in phases)
    ratio = allocated / max(needs.allocated, 1)
    reserved, grown = round(needs.reserved * ratio), round(needs.reserved_expandable * ratio)
    return replace(
        needs,
        traced=top.traced,
        allocated=allocated,
        reserved=reserved,
        reserved_expandable=grown,
        least=round(needs.least * ratio),
        least_expandable=round(needs.least_expandable * ratio),
        process=outside + reserved,
        process_expandable=outside + grown,
        outside=outside,
        phases=tuple(phases),
        components=top.components,
        peak_phase=top.phase,
    )
