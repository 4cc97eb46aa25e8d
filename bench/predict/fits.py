"""Does it fit? Yes, tight or no, in words; and on which and how many GPUs it does.

* **yes**: the process at its largest, with nothing released in between, is no more than torch can
  use of the card.
* **tight**: only the least memory that torch can work in, with the expected context, is: the
  allocator has to stop and release its cache (or needs expandable segments).
* **no**: not even that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from bench.predict.figures import RESIDENT, Figures
from bench.predict.gpus import GIB, Gpu

Answer = Literal["yes", "tight", "no"]

COUNTS = (1, 2, 4, 8, 16)
"""GPUs that machines have, and papers use."""

_NAMES = {
    "state": "state",
    "noise": "noise scratch",
    "other": "temporaries",
}


@dataclass(frozen=True)
class Fit:
    """The answer for ``count`` GPUs of one model."""

    answer: Answer
    gpu: str
    count: int
    spare: int
    """Bytes left on the fullest device; negative: missing. Of the figure that decides."""
    words: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for ``--json``."""
        return asdict(self)


def fit(needs: Sequence[Figures], gpu: Gpu) -> Fit:
    """Say whether a step fits the GPUs it was traced for: one figure set a device."""
    if not needs:
        raise ValueError("expected the figures of at least one device")
    rank = ("yes", "tight", "no")
    found = [_one(each, gpu) for each in needs]
    worst = max(range(len(needs)), key=lambda i: (rank.index(found[i][0]), -found[i][1]))
    answer, spare = found[worst]
    words = _words(answer, spare, needs, worst, gpu)
    return Fit(answer, gpu.name, len(needs), spare, words)


def smallest_count(
    at: Callable[[int], Sequence[Figures] | None],
    gpu: Gpu,
    counts: Iterable[int] = COUNTS,
    *,
    tight: bool = False,
) -> Fit | None:
    """Return the answer for the fewest GPUs that hold the step; None if no count does.

    Args:
        at: the figures of each device when spread over so many; None where it can't be.
        gpu: the card.
        counts: the numbers to try, rising.
        tight: take the first where it is tight. If not, more where it fits go before it.

    """
    least = None
    for count in counts:
        needs = at(count)
        if needs is None:
            continue
        found = fit(needs, gpu)
        if found.answer == "yes" or (tight and found.answer == "tight"):
            return found
        if found.answer == "tight" and least is None:
            least = found
    return least


def at_least(needs: Sequence[Figures], gpu: Gpu) -> int:
    """Return how many GPUs it takes by bytes alone: no plan for fewer can work."""
    room = gpu.usable - needs[0].outside.low
    total = sum(each.least for each in needs)
    return max(1, -(-total // max(room, 1)))


def gib(nbytes: int) -> str:
    """Return bytes in words: whole GiB from 10 on, else one digit after the point."""
    size = nbytes / GIB
    return f"{size:.0f} GiB" if abs(size) >= 10 else f"{size:.1f} GiB"


def peak(needs: Figures) -> str:
    """Name the peak in words: "the peak is the forward's logits"."""
    component = needs.peak_component
    if component == "weights":
        return "nearly all of it is the weights"
    name = _NAMES.get(component, component)
    if component not in RESIDENT:
        return f"the peak is the {needs.peak_phase}'s {name}"
    size = gib(needs.components[component])
    return f"the peak is in the {needs.peak_phase}: beside the weights, {size} of {name}"


def _one(needs: Figures, gpu: Gpu) -> tuple[Answer, int]:
    spare = gpu.usable - needs.process.high
    if spare >= 0:
        return "yes", spare
    spare = gpu.usable - needs.process_expandable.high
    tight = gpu.usable - needs.least - needs.outside.expected
    return ("tight", max(tight, spare)) if max(tight, spare) >= 0 else ("no", tight)


def _words(answer: Answer, spare: int, needs: Sequence[Figures], worst: int, gpu: Gpu) -> str:
    cards = _cards(len(needs), gpu)
    where = f" on device {needs[worst].device}" if len(needs) > 1 else ""
    reason = peak(needs[worst])
    if answer == "yes":
        return f"fits {cards} with {gib(spare)} to spare{where}; {reason}"
    if answer == "tight":
        cure = (
            "expandable segments make it fit"
            if gpu.usable >= needs[worst].process_expandable.high
            else "torch must empty its cache on the way, which is slow"
        )
        return f"is tight on {cards}: {cure}{where}; {reason}"
    more = at_least(needs, gpu)
    advice = f"; by bytes alone it takes at least {more}" if more > len(needs) else ""
    return f"does not fit {cards}: {gib(-spare)} too little{where}; {reason}{advice}"


def _cards(count: int, gpu: Gpu) -> str:
    short = gpu.title.removeprefix("NVIDIA ").removeprefix("AMD ").removesuffix(" SXM")
    return f"one {short}" if count == 1 else f"{count} x {short}"
