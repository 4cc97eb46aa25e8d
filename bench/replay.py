"""A finished run's weights again, from the initial ones and its trajectory: no forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from bench import environment, threads
from bench.built import Built, build
from bench.cell import TRAJECTORY, read_cell, read_events
from bench.models.quiet import quiet
from bench.precision import digest
from bench.records import RunSpec, UserError
from zo_core import Trajectory, methods
from zo_core.base import Replayable

_DECISIVE = ("code", "packages", "cpu")


@dataclass(frozen=True)
class Replayed:
    """What came of it."""

    spec: RunSpec
    built: Built
    steps: int
    digest: str
    live_digest: str | None
    """Of the live run's weights at its end; None for a run that did not get there."""
    differs: tuple[str, ...]
    """What is not as it was where the run was made, and may decide bits."""

    @property
    def equal(self) -> bool | None:
        """Whether the weights are the live run's to the bit; None where that can't be known."""
        return None if self.live_digest is None else self.live_digest == self.digest


def replay(folder: Path, *, retrace: bool = True, device: str | None = None) -> Replayed:
    """Rebuild the weights of the run in ``folder``.

    Args:
        folder: of one run, with its ``cell.json`` and ``trajectory.bin``.
        retrace: make the perturbations' moves as well, so that the bits are the live ones; without
            them it is about three times as fast, and what restores drift by is left out.
        device: where to work; the run's own if None. Noise is the same on every device, and so are
            weights that come from a checkpoint; random ones are not.

    Raises:
        UserError: not a run's folder, a run without a trajectory, or a device that is not here.

    """
    spec = _spec(folder)
    if not isinstance(methods.build(spec.method, **spec.options), Replayable):
        raise UserError(
            f"'{spec.method}' leaves no trajectory; only zeroth-order runs can be replayed."
        )
    then = [e for e in read_events(folder) if e["event"] == "environment"]
    spec = spec.model_copy(update={"device": device or spec.device})
    environment.check_device(spec.device)
    torch.set_num_threads(then[-1]["threads"] if then else threads.count(None))
    now = environment.read(spec.device).model_dump(mode="json")
    built = build(spec)
    try:
        trajectory = Trajectory.read(folder / TRAJECTORY)
        trajectory.replay_(built.params, retrace=retrace)
    except (OSError, ValueError) as error:
        raise UserError(f"The run's trajectory can't be replayed: {error}") from error
    differs = tuple(k for k in _DECISIVE if then and then[-1].get(k) != now[k])
    weights = digest(built.params)
    return Replayed(spec, built, len(trajectory.steps), weights, _live(folder), differs)


def export(replayed: Replayed, to: Path) -> list[str]:
    """Write the weights; return the names of the files.

    A model that is trained as it is, or by LoRA (merged into its weights), becomes a checkpoint in
    the Hugging Face format. What such a checkpoint has no place for (a prefix, a prompt, a
    classification head) is written as ``trained.safetensors``, the trained tensors by name, beside
    the ``spec.json`` that says what they belong to.
    """
    to.mkdir(parents=True, exist_ok=True)
    built, spec = replayed.built, replayed.spec
    with quiet():
        if hasattr(built.module, "save_pretrained") and spec.tuning not in ("prefix", "prompt"):
            if spec.tuning == "lora":
                _merge_(built.module)
            built.module.save_pretrained(to)
            if built.tokenizer is not None:
                built.tokenizer.save_pretrained(to)
        else:
            tensors = {p.name: p.tensor.detach().contiguous().clone() for p in built.params}
            save_file(tensors, to / "trained.safetensors")
            text = spec.model_dump_json(exclude_defaults=True, indent=1)
            (to / "spec.json").write_text(text + "\n", encoding="utf-8")
    return sorted(p.name for p in to.iterdir())


def _merge_(module: nn.Module) -> None:
    """Add every LoRA product to its weight, and put the plain layer back."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # why here: it takes seconds

    layers = [(n, m) for n, m in module.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, layer in layers:
        merging: Any = layer
        merging.merge()
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, merging.get_base_layer())


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
