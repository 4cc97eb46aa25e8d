"""How many GPUs it takes: traced where there is a trace of so many, else ESTIMATED from one.

A trace over several devices (``bench.predict.parallel``) takes as long as one of a single device,
or a few times that (FSDP), so counts are first tried by rules (``bench.predict.parallel_rules``).

In a step weights are gathered twice (under autocast in 16 bits: half of them) and gradients
scattered once: 3 weights (n - 1) / n over half of the link's bandwidth (vendors count both
directions). The low figure of its time has all of that hidden behind arithmetic, the expected one
half, the high one nothing. What a pipeline sends, activations, is not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from bench.predict import fits
from bench.predict.calibration import Calibration
from bench.predict.figures import Figures
from bench.predict.fits import Fit
from bench.predict.gpus import Gpu
from bench.predict.parallel import WORDS
from bench.predict.parallel_rules import layout_of, spread
from bench.predict.prediction import Prediction
from bench.predict.roofline import Cost, Estimate

_NEAR = 0.1
"""Of a card: by how much a count may miss it and still be worth a trace."""
_GATHERED, _SCATTERED = 2, 1
"""Times that all weights, and all gradients, are sent in a step."""


@dataclass(frozen=True)
class Plan:
    """The fewest GPUs of one kind that hold a run."""

    fit: Fit
    layout: str
    quality: Literal["traced", "estimated"]
    """``estimated``: by rules, or carried on from fewer layers; not traced."""
    doubtful: tuple[int, ...]
    """Numbers of GPUs that a trace should be made of before this plan is believed: its own, and
    one below that misses the card by less than a tenth."""
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
    counts: Sequence[int] = fits.COUNTS,
    constants: Calibration | None = None,
    traced: Mapping[int, Prediction] | None = None,
    tight: bool = False,
) -> Plan | None:
    """Return the smallest plan on GPUs of one kind; None if no count holds the run.

    Args:
        prediction: the run, traced on one GPU.
        gpu: the card.
        steps: of training, for the cost.
        counts: the numbers of GPUs to try, rising.
        constants: what a process holds beside its tensors; the packaged ones if not given.
        traced: traces of the run over several devices, by their number; they go before the rules.
        tight: take the first count that is tight, too; see ``fits.smallest_count``.

    """
    several = traced or {}
    known: dict[int, tuple[Figures, ...]] = {}

    def at(count: int) -> tuple[Figures, ...] | None:
        there = several.get(count)
        needs = there.on(gpu) if there else spread(prediction, gpu, count, constants)
        if needs is not None:
            known[count] = needs
        return needs

    found = fits.smallest_count(at, gpu, counts, tight=tight)
    if found is None:
        return None
    hours = over(several.get(found.count, prediction), gpu, steps=steps, count=found.count)
    known_whole = found.count in several or (found.count == 1 and prediction.whole)
    quality: Literal["traced", "estimated"] = "traced" if known_whole else "estimated"
    doubtful = tuple(n for n in _near(found, known, gpu) if n not in several)
    layout = layout_of(prediction, found.count)
    return Plan(found, layout, quality, doubtful, known[found.count], hours)


def missed(
    prediction: Prediction, gpus: Iterable[Gpu], constants: Calibration | None = None
) -> int | None:
    """Return the most GPUs there are, if by the rules they miss a run by little; else None."""
    most = fits.COUNTS[-1]
    for gpu in gpus:
        needs = spread(prediction, gpu, most, constants)
        if needs and fits.fit(needs, gpu).spare >= -_NEAR * gpu.usable:
            return most
    return None


def _near(found: Fit, known: Mapping[int, tuple[Figures, ...]], gpu: Gpu) -> list[int]:
    """Return the number of GPUs that was found, and the one below it if it misses by little."""
    several = [count for count in known if 1 < count <= found.count]
    spare = {count: fits.fit(known[count], gpu).spare for count in several[-2:]}
    return [n for n in several[-2:] if n == found.count or spare[n] >= -_NEAR * gpu.usable]


def over(prediction: Prediction, gpu: Gpu, *, steps: int, count: int | None = None) -> Cost:
    """Return what so many steps take on ``count`` GPUs; on as many as were traced by default."""
    count = len(prediction.needs) if count is None else count
    hours = prediction.cost(gpu, steps=steps, gpus=count)
    if layout_of(prediction, count) != WORDS["fsdp"]:
        return hours
    # Each of n works on a batch of its own in the time that one would take, so n times the
    # examples: hours are those of so many steps of n batches.
    hours = replace(hours, notes=(*hours.notes, "the batch is that of each GPU"))
    return _sent(hours, prediction, gpu, count, steps)


def _sent(cost: Cost, prediction: Prediction, gpu: Gpu, count: int, steps: int) -> Cost:
    """Return the cost with what full sharding sends."""
    weights = prediction.model.parameter_bytes
    transfers = _GATHERED / (2 if prediction.spec.autocast else 1) + _SCATTERED
    seconds = transfers * weights * (count - 1) / count / (gpu.link_bandwidth / 2)
    sent = Estimate(0.0, seconds / 2, seconds)
    hours = cost.gpu_hours + sent * (steps * count / 3600)
    price = None if gpu.price_per_hour is None else hours * gpu.price_per_hour
    phases = {**cost.phases, "communication": sent}
    return replace(cost, step=cost.step + sent, phases=phases, gpu_hours=hours, price=price)
