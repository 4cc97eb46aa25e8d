"""What is predicted of a run: the figures of each device, and the work of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bench.predict import calibration
from bench.predict.calibration import Band, Calibration
from bench.predict.figures import Figures, PhaseFigures
from bench.predict.gpus import Gpu
from bench.predict.log import OUTSIDE_BLOCKS, Log, Work
from bench.predict.parallel import Parallel
from bench.predict.roofline import Cost, Efficiency, cost
from bench.records import ModelFacts, RunSpec, UserError

ARCHITECTURES = ("default", "hopper", "blackwell")
"""What cuBLAS's workspace tells apart, and so what figures are made for."""
EQUAL_LENGTHS = ("random_tokens", "random_answers")
"""Tasks without data, all of whose minibatches are alike."""


@dataclass(frozen=True)
class Prediction:
    """One run, predicted.

    Args:
        spec: the run.
        emulate: the device whose kernels and defaults were taken, ``cuda`` or ``cpu``.
        model: what was built; of a shallow trace, carried on to the whole depth.
        layers: blocks of the model.
        traced_layers: depths that were traced; ``(layers,)`` where all of it was.
        steps: how many steps were traced; ``work`` is of all of them together.
        figures: architecture -> the figures of each device; with FSDP those of the first rank
            stand for all, since none holds more.
        work: of each phase.
        facts: versions and seconds, text for people.
        parallel: the layout over several devices that was traced; None: one device.
        efficiencies: shares of the peaks that real runs reached, by GPU and dtype; what is not
            there is assumed.

    """

    spec: RunSpec
    emulate: str
    model: ModelFacts
    layers: int
    traced_layers: tuple[int, ...]
    steps: int
    figures: Mapping[str, tuple[Figures, ...]]
    work: Mapping[str, Work]
    facts: Mapping[str, str]
    parallel: Parallel | None = None
    efficiencies: Mapping[tuple[str, str], Efficiency] = field(default_factory=dict)

    @property
    def layout(self) -> str:
        """What was traced: one GPU, or the layout over several, in words."""
        return self.parallel.words if self.parallel else "one GPU"

    @property
    def whole(self) -> bool:
        """Whether all layers were traced: if not, reserved memory is an estimate."""
        return self.traced_layers == (self.layers,)

    @property
    def outside_blocks(self) -> int:
        """Bytes of the weights that are in no block: embeddings, a head, the last norm."""
        return int(self.facts.get(OUTSIDE_BLOCKS, "0"))

    @property
    def needs(self) -> tuple[Figures, ...]:
        """The figures of each device, on a GPU of no particular kind."""
        return self.figures["default"]

    def on(self, gpu: Gpu) -> tuple[Figures, ...]:
        """Return the figures of each device, on GPUs of one kind."""
        return self.figures.get(gpu.architecture, self.needs)

    def calibrated(self, constants: Calibration) -> Prediction:
        """Return the prediction with another CUDA context, and with measured speeds.

        Raises:
            UserError: the constants have another workspace, which is in the figures already.

        """
        if constants.workspace != calibration.read().workspace:
            raise UserError(
                "Expected a calibration with the packaged [workspace], got another: it is in what "
                "is traced. Change [context] and [nccl] alone."
            )
        ranks = self.parallel.ranks if self.parallel else 1
        outside = constants.context + constants.communicators(ranks)
        figures = {
            kind: tuple(each.beside(outside) for each in several)
            for kind, several in self.figures.items()
        }
        return replace(self, figures=figures, efficiencies=constants.efficiencies)

    def efficiency(self, gpu: Gpu) -> Efficiency | None:
        """Return the shares of a GPU's peaks that real runs of this dtype reached; or None."""
        return self.efficiencies.get((gpu.name, dtype_of(self.spec)))

    def cost(self, gpu: Gpu, *, steps: int, gpus: int = 1) -> Cost:
        """Return what so many steps take on GPUs of one kind; see ``bench.predict.roofline``."""
        counts = {"evaluations": self.facts.get("evaluations", "1")}
        log = Log(work=dict(self.work), facts={"steps": str(max(self.steps, 1)), **counts})
        return cost(log, gpu, steps=steps, gpus=gpus, efficiency=self.efficiency(gpu))

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, for a file or for ``--json``."""
        return {
            "spec": self.spec.model_dump(mode="json"),
            "emulate": self.emulate,
            "model": self.model.model_dump(mode="json"),
            "layers": self.layers,
            "traced_layers": list(self.traced_layers),
            "steps": self.steps,
            "figures": {a: [f.as_dict() for f in several] for a, several in self.figures.items()},
            "work": {phase: asdict(work) for phase, work in self.work.items()},
            "facts": dict(self.facts),
            "parallel": asdict(self.parallel) if self.parallel else None,
        }


def dtype_of(spec: RunSpec) -> str:
    """Return the dtype of a run's matrix products."""
    return spec.autocast or spec.dtype


def of_dict(data: Mapping[str, Any]) -> Prediction:
    """Return what :meth:`Prediction.as_dict` wrote."""
    return Prediction(
        spec=RunSpec.model_validate(data["spec"]),
        emulate=data["emulate"],
        model=ModelFacts.model_validate(data["model"]),
        layers=data["layers"],
        traced_layers=tuple(data["traced_layers"]),
        steps=data["steps"],
        figures={a: tuple(map(_figures, several)) for a, several in data["figures"].items()},
        work={phase: Work(**work) for phase, work in data["work"].items()},
        facts=data["facts"],
        parallel=Parallel(**data["parallel"]) if data["parallel"] else None,
    )


def _figures(data: Mapping[str, Any]) -> Figures:
    fields = {k: v for k, v in data.items() if k != "peak_component"}
    for band in ("process", "process_expandable", "outside"):
        fields[band] = Band(**fields[band])
    fields["phases"] = tuple(PhaseFigures(**phase) for phase in fields["phases"])
    return Figures(**fields)
