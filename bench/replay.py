"""A finished run's weights again, from the initial ones and its trajectory: no forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.built import Built, build
from bench.cell import TRAJECTORY, read_cell, read_events
from bench.precision import digest
from bench.records import RunSpec, UserError
from zo_core import Trajectory
from zo_core.base import Replayable


@dataclass(frozen=True)
class Replayed:
    """What came of it."""

    built: Built
    steps: int
    digest: str
    live_digest: str | None
    """Of the live run's weights at its end; None for a run that did not get there."""

    @property
    def equal(self) -> bool | None:
        """Whether the weights are the live run's to the bit; None where that can't be known."""
        return None if self.live_digest is None else self.live_digest == self.digest


def replay(folder: Path, *, retrace: bool = True) -> Replayed:
    """Rebuild the weights of the run in ``folder``.

    Args:
        folder: of one run, with its ``cell.json`` and ``trajectory.bin``.
        retrace: make the perturbations' moves as well, so that the bits are the live ones; without
            them it is about four times as fast, and what restores drift by is left out.

    Raises:
        UserError: not a run's folder, a run without a trajectory, or one made elsewhere.

    """
    spec = _spec(folder)
    built = build(spec)
    if not isinstance(built.method, Replayable):
        raise UserError(
            f"'{spec.method}' leaves no trajectory; only zeroth-order runs can be replayed."
        )
    try:
        trajectory = Trajectory.read(folder / TRAJECTORY)
    except (OSError, ValueError) as error:
        raise UserError(f"The run's trajectory can't be read: {error}") from error
    trajectory.replay_(built.params, retrace=retrace)
    return Replayed(built, len(trajectory.steps), digest(built.params), _live(folder))


def export(replayed: Replayed, to: Path) -> None:
    """Write the weights as a checkpoint in the Hugging Face format (adapters: in that of peft)."""
    to.mkdir(parents=True, exist_ok=True)
    replayed.built.module.save_pretrained(to)
    if replayed.built.tokenizer is not None:
        replayed.built.tokenizer.save_pretrained(to)


def _spec(folder: Path) -> RunSpec:
    try:
        return read_cell(folder).spec
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} is not the folder of a run: expected cell.json and {TRAJECTORY} in it, as "
            "in results/<suite>/<run key>."
        ) from error


def _live(folder: Path) -> str | None:
    told = [e["digest"] for e in read_events(folder) if e["event"] == "weights"]
    return told[-1] if told else None
