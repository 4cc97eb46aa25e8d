"""Going on with a run that was killed: to the same bits as if it had not been.

A zeroth-order run resumes from its trajectory: the steps it logged are taken again, with all the
roundings of the live ones and without a forward pass, and bring back the method's state as well. A
first-order run resumes from what ``save_every`` saved last; without, from the beginning.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from bench import precision
from bench.cell import EVENTS, SAVED, TRAJECTORY, read_events
from bench.records import write_atomically
from zo_core import Method, Params, Trajectory
from zo_core.base import Replayable, State

_KEPT = ("start", "environment", "step", "evaluation", "flag")


@dataclass(frozen=True)
class Done:
    """What a killed run had done, as far as it can be taken up."""

    steps: int
    """Steps that need not be looked at again."""
    events: list[dict[str, Any]]
    """Of these steps."""

    def total(self, what: str) -> Any:
        """Return the sum of a column of the steps."""
        return sum(e[what] for e in self.events if e["event"] == "step")

    @property
    def evaluated(self) -> bool:
        """Whether the evaluation after the last of the steps was made."""
        return any(e["event"] == "evaluation" and e["step"] == self.steps for e in self.events)


def take_up(folder: Path, method: Method) -> Done | None:
    """Return what an earlier try in ``folder`` had done, and cut its events back to that.

    None where there is nothing to take up, or where it was made with other code or packages; then
    its events are forgotten. The last environment among the events is that of this process.
    """
    events = read_events(folder)
    *before, now = [e for e in events if e["event"] == "environment"]
    steps = sum(e["event"] == "step" for e in events)
    if before and all(_decisive(b) == _decisive(now) for b in before):
        steps = min(steps, _known(folder, method))
    else:
        steps = 0
    if not steps:
        forget(folder)
        return None
    begun = _newest(events)
    kept = _until(events[:begun], steps)
    _write(folder, kept + events[begun:])
    return Done(steps, kept)


def forget(folder: Path) -> None:
    """Drop the events of earlier processes: this one begins the run anew."""
    events = read_events(folder)
    _write(folder, events[_newest(events) :])


def _newest(events: list[dict[str, Any]]) -> int:
    """Return where the events of the newest process begin."""
    return max(n for n, e in enumerate(events) if e["event"] == "start")


def restore_(folder: Path, done: Done, method: Method, params: Params) -> State:
    """Bring ``params`` to where the run stood; return the method's state there."""
    if isinstance(method, Replayable):
        return _told(folder, done.steps).replay_(params, retrace=True)
    state = method.init(params)
    saved = torch.load(folder / SAVED, map_location=params[0].tensor.device, weights_only=True)
    with torch.no_grad():
        for param, weights in zip(params, saved["weights"], strict=True):
            param.tensor.copy_(weights)
    if isinstance(state, torch.optim.Optimizer):
        state.load_state_dict(saved["optimizer"])
    return state


def save(folder: Path, steps: int, params: Params, state: State) -> None:
    """Save weights and optimiser of a first-order run, atomically."""
    optimizer = state.state_dict() if isinstance(state, torch.optim.Optimizer) else None
    weights = [p.tensor.detach() for p in params]
    new = folder / f"{SAVED}.new"
    torch.save({"steps": steps, "weights": weights, "optimizer": optimizer}, new)
    os.replace(new, folder / SAVED)


def told(folder: Path, done: Done) -> Trajectory:
    """Return the trajectory of the steps that are kept."""
    return _told(folder, done.steps)


def _write(folder: Path, events: list[dict[str, Any]]) -> None:
    write_atomically(folder / EVENTS, "".join(json.dumps(e) + "\n" for e in events))


def _told(folder: Path, steps: int) -> Trajectory:
    whole = Trajectory.read(folder / TRAJECTORY)
    return Trajectory(whole.method, whole.options, whole.lr, whole.run_seed, whole.steps[:steps])


def _known(folder: Path, method: Method) -> int:
    """Return how many steps the files can bring back."""
    try:
        if isinstance(method, Replayable):
            return len(Trajectory.read(folder / TRAJECTORY).steps)
        return int(torch.load(folder / SAVED, weights_only=True, mmap=True)["steps"])
    except (OSError, ValueError, RuntimeError, UnpicklingError):
        return 0


def _until(events: list[dict[str, Any]], steps: int) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    taken = 0
    for event in events:
        if event["event"] == "step":
            taken += 1
            if taken > steps:
                break
        # Peaks and seconds are of a process, and told anew; roundings are of the steps they were
        # watched in, which are not taken again.
        watched = event["event"] == "measurement" and event["source"] == precision.SOURCE
        if event["event"] in _KEPT or watched:
            kept.append(event)
    return kept


def _decisive(environment: dict[str, Any]) -> tuple[Any, ...]:
    """What must be the same for a run to go on in the same bits."""
    return tuple(environment[k] for k in ("code", "packages", "cpu", "threads", "devices"))
