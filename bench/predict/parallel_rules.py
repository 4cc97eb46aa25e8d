"""Several GPUs ESTIMATED from a trace on one; where there is a trace over several, that is taken.

**Layer pipeline** (methods without a backward pass; blocks laid out over n devices, one working at
a time, what is in no block on the first). Each device holds the smallest number of whole blocks
with which n devices hold them all, the first fewer by what is in no block; and::

    resident * (bytes of weights on it / all weights) + the rest

resident: weights, and what the method keeps in their shape. The rest (activations, logits, noise
scratch) counts in full on each, since it goes from device to device.

**FSDP, full shard** (first-order methods; the batch is that of each device)::

    resident / n + unsharded + the rest          resident: weights, gradients, optimiser state
    everything / n                               while the optimiser updates, all of it is sharded

unsharded: three blocks' weights in forward and backward (the one in use, the one that is fetched
ahead, one block's gradients before they are scattered), and twice the weights that are in no block
(embeddings, head: they stay gathered, and their gradients are scattered last). Under autocast they
are gathered in 16 bits, and take the place of the copies that one GPU keeps of all weights.

What the allocator reserves beyond: in proportion on a pipeline; under FSDP, whose gathering and
freeing fragments, 3.5 blocks of weights (fitted to traces of OPT 2.7B to 66B on 2 to 16 GPUs).
With expandable segments in proportion on both. Every process has its CUDA context, and under FSDP
its NCCL communicator.

Beside those traces (batch 1 x 400) allocated bytes were within 3 % without that number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from bench.predict import calibration
from bench.predict.calibration import Band, Calibration
from bench.predict.figures import RESIDENT, Figures, PhaseFigures
from bench.predict.gpus import Gpu
from bench.predict.parallel import WORDS
from bench.predict.prediction import Prediction

_UNSHARDED_BLOCKS = 3
_UNSHARDED_ROOT = 2
_FRAGMENTS = 3.5
_GATHERING = ("forward", "backward", "evaluate")
_ONE = "one GPU"


def layout_of(prediction: Prediction, count: int) -> str:
    """Return how a run is laid out over so many GPUs."""
    if count == 1:
        return _ONE
    return WORDS["fsdp" if "backward" in prediction.work else "pipeline"]


def spread(
    prediction: Prediction, gpu: Gpu, count: int, constants: Calibration | None = None
) -> tuple[Figures, ...] | None:
    """Estimate the figures of each of ``count`` devices; None of a pipeline with fewer blocks."""
    needs = prediction.on(gpu)
    if count == 1:
        return needs
    fsdp = layout_of(prediction, count) == WORDS["fsdp"]
    if count > prediction.layers and not fsdp:
        return None
    context = constants or calibration.read()
    outside = context.context + context.communicators(count if fsdp else 1)
    made = []
    for device in range(count):
        if fsdp:
            share = _fsdp(prediction, needs[0], count)
        else:
            share = _pipeline(prediction, count, device)
        one = replace(_scaled(needs[0], share, outside), device=device)
        made.append(_fragmented(one, prediction) if fsdp else one)
    return tuple(made)


Share = Callable[[PhaseFigures], dict[str, int]]
"""What one device holds of each component at the peak of a phase."""


def _pipeline(prediction: Prediction, count: int, device: int) -> Share:
    weights = max(prediction.model.parameter_bytes, 1)
    held = stages(weights, prediction.outside_blocks, prediction.layers, count)[device > 0]

    def share(phase: PhaseFigures) -> dict[str, int]:
        return {
            name: -(-size * held // weights) if name in RESIDENT else size
            for name, size in phase.components.items()
        }

    return share


def stages(weights: int, outside: int, layers: int, count: int) -> tuple[int, int]:
    """Return the bytes of weights on the first of ``count`` devices, and on the fullest other.

    >>> stages(weights=110, outside=10, layers=10, count=2), stages(126, 46, 10, 2)
    ((60, 50), (62, 64))

    Args:
        weights: bytes in all.
        outside: bytes in no block.
        layers: blocks, all alike.
        count: devices.

    """
    block = (weights - outside) / layers
    limits = sorted(n * block + extra for n in range(layers + 1) for extra in (0, outside))
    for limit in limits:
        first, other = ((limit - spent) / block + 1e-9 for spent in (outside, 0))
        if first >= 0 and int(first) + (count - 1) * int(other) >= layers:
            break
    most = min(int(other), layers - int(first))
    return round(outside + int(first) * block), round(most * block)


def _fsdp(prediction: Prediction, needs: Figures, count: int) -> Share:
    weights, layers = needs.components.get("weights", 0), prediction.layers
    copies = weights // 2 if prediction.spec.autocast else 0
    root = prediction.outside_blocks
    gathered = _UNSHARDED_BLOCKS * (weights - root) // layers + _UNSHARDED_ROOT * root
    gathered //= 2 if prediction.spec.autocast else 1

    def share(phase: PhaseFigures) -> dict[str, int]:
        every = phase.phase not in _GATHERING
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


def _fragmented(needs: Figures, prediction: Prediction) -> Figures:
    """Return the figures with what FSDP leaves unused between its blocks."""
    inside = prediction.model.parameter_bytes - prediction.outside_blocks
    reserved = needs.allocated + round(_FRAGMENTS * inside / prediction.layers)
    return replace(needs, reserved=reserved, process=needs.outside + reserved)


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
