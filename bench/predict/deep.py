"""The figures of a deep model from those of shallow ones.

Where a step keeps no activations, the bytes live at any place of it after loading grow by the same
amount with every block: the block's weights, and what the method keeps for them. So live bytes
are one line in depth, to the byte; three depths are taken, and what does not lie on one line is
refused. First-order methods are not carried on: in one backward pass the peak may move, with
depth, from where all activations are live to where all gradients are, and a maximum of two lines
looks like one line until they cross.

What an allocator reserves beyond the live bytes is no line (it comes in segments of 2 and 20 MiB):
it is carried on by the slope between the first and the last depth, and called an estimate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from bench.predict.figures import Figures, PhaseFigures
from bench.predict.log import Work
from bench.records import ModelFacts

DEPTHS = (2, 4, 6)
"""Blocks of the shallow traces: the line, and a third point that must lie on it."""


class NotAffine(Exception):
    """Something did not lie on one line: all layers must be traced."""


def figures_at(layers: int, traced: Mapping[int, Figures]) -> Figures:
    """Return the figures at ``layers`` from those at three depths.

    Raises:
        NotAffine: live bytes do not lie on one line.

    """
    depths, found = list(traced), list(traced.values())
    first = found[0]
    if any(
        [p.phase for p in f.phases] != [p.phase for p in first.phases]
        or f.peak_phase != first.peak_phase
        or f.temporaries != first.temporaries
        for f in found
    ):
        raise NotAffine("phases")
    phases = tuple(
        _phase(layers, depths, [f.phases[i] for f in found]) for i in range(len(first.phases))
    )
    traced_peak = _line(layers, depths, [f.traced for f in found])
    allocated = _line(layers, depths, [f.allocated for f in found])
    if traced_peak != max(p.traced for p in phases):
        raise NotAffine("the phase of the peak moves with depth")
    beyond = {
        name: _slope(layers, depths, [getattr(f, name) - f.allocated for f in found])
        for name in ("reserved", "reserved_expandable")
    }
    reserved = allocated + beyond["reserved"]
    expandable = allocated + beyond["reserved_expandable"]
    least = {
        name: traced_peak + _slope(layers, depths, [getattr(f, name) - f.traced for f in found])
        for name in ("least", "least_expandable")
    }
    return replace(
        first,
        traced=traced_peak,
        allocated=allocated,
        reserved=reserved,
        reserved_expandable=expandable,
        least=least["least"],
        least_expandable=least["least_expandable"],
        process=first.outside + reserved,
        process_expandable=first.outside + expandable,
        phases=phases,
        components=_parts(layers, depths, [f.components for f in found]),
    )


def work_at(layers: int, traced: Mapping[int, Mapping[str, Work]]) -> dict[str, Work]:
    """Return the work of each phase at ``layers``."""
    depths, found = list(traced), list(traced.values())
    return {phase: _work(layers, depths, [one[phase] for one in found]) for phase in found[0]}


def facts_at(layers: int, traced: Mapping[int, ModelFacts]) -> ModelFacts:
    """Return the model's facts at ``layers``."""
    depths, found = list(traced), list(traced.values())
    numbers = {
        name: _line(layers, depths, [getattr(f, name) for f in found])
        for name in ("parameters", "trained_parameters", "parameter_bytes")
    }
    return found[-1].model_copy(update={**numbers, "trained_tensors": None})


def _phase(layers: int, depths: list[int], found: Sequence[PhaseFigures]) -> PhaseFigures:
    allocated = _line(layers, depths, [f.allocated for f in found])
    return PhaseFigures(
        found[0].phase,
        _line(layers, depths, [f.traced for f in found]),
        allocated,
        allocated + _slope(layers, depths, [f.reserved - f.allocated for f in found]),
        allocated + _slope(layers, depths, [f.reserved_expandable - f.allocated for f in found]),
        _parts(layers, depths, [f.components for f in found]),
    )


def _parts(layers: int, depths: list[int], found: Sequence[Mapping[str, int]]) -> dict[str, int]:
    names = dict.fromkeys(name for parts in found for name in parts)
    return {n: _line(layers, depths, [parts.get(n, 0) for parts in found]) for n in names}


def _work(layers: int, depths: list[int], found: Sequence[Work]) -> Work:
    dtypes = dict.fromkeys(dtype for work in found for dtype in work.flops)
    flops = {d: _line(layers, depths, [w.flops.get(d, 0) for w in found]) for d in dtypes}
    nbytes = _line(layers, depths, [w.bytes for w in found])
    return Work(flops, nbytes, _line(layers, depths, [w.ops for w in found]))


def _line(layers: int, depths: Sequence[int], values: Sequence[int]) -> int:
    """Return the value at ``layers`` of the one line through all points, to the byte."""
    slope, rest = divmod(values[-1] - values[0], depths[-1] - depths[0])
    for depth, value in zip(depths, values, strict=True):
        if rest or value != values[0] + slope * (depth - depths[0]):
            raise NotAffine(f"{list(values)} at {list(depths)} layers")
    return values[-1] + slope * (layers - depths[-1])


def _slope(layers: int, depths: Sequence[int], values: Sequence[int]) -> int:
    """Return about what is at ``layers``; at least what was seen, never less than nothing."""
    slope = (values[-1] - values[0]) / (depths[-1] - depths[0])
    return max(0, round(values[-1] + max(slope, 0.0) * (layers - depths[-1])))
