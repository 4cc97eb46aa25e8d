"""Predictions as records, beside what was measured.

``prediction.json`` in a run's folder is a record like any other: status ``skipped``, nothing
measured, ``predicted`` filled. When the run is made, its own record takes the prediction over,
with the difference to what was measured (:func:`joined`). Until then ``zometer predict`` puts it
in the place of that record too, so that a report of predictions alone can be made.

The phases of a record are inclusive, as measured ones are: ``train`` holds the phases inside a
step, ``run`` holds all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bench import trackers
from bench.predict.prediction import EQUAL_LENGTHS
from bench.predict.roofline import OUTSIDE_STEPS
from bench.records import (
    Measurement,
    Metric,
    RunRecord,
    RunSpec,
    UserError,
    read_record,
    write_atomically,
)

if TYPE_CHECKING:
    from bench.cell import Cell
    from bench.predict.figures import Figures, PhaseFigures
    from bench.predict.prediction import Prediction

PREDICTION = "prediction.json"
REASON = "predicted, not run"

METRICS = {
    "predicted_reserved_expandable_bytes": Metric(
        "B",
        "As device_reserved_peak_bytes, with expandable segments "
        "(PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True).",
    ),
    "predicted_least_capacity_bytes": Metric(
        "B",
        "Least memory of the device, less all that is not torch's, in which the run still works: "
        "the allocator may have to stop and give back its cache. To within 8 MiB where all layers "
        "were traced; an estimate where the source says that it was carried on from fewer.",
    ),
    "predicted_process_low_bytes": Metric(
        "B",
        "Memory of the process as its driver counts it: reserved, and the CUDA context at its "
        "smallest. Counterpart of device_process_peak_bytes.",
    ),
    "predicted_process_expected_bytes": Metric(
        "B", "The same, with the context that is usual (calibration.toml says where from)."
    ),
    "predicted_process_high_bytes": Metric("B", "The same, with the context at its largest."),
    "predicted_minus_measured_allocated_bytes": Metric(
        "B",
        "Error of the prediction: predicted less measured, of device_allocated_peak_bytes or, on "
        "the CPU, of host_allocated_peak_bytes, in the same phase.",
    ),
    "predicted_minus_measured_reserved_bytes": Metric(
        "B", "Error of the prediction: predicted less measured device_reserved_peak_bytes."
    ),
    "predicted_minus_measured_process_bytes": Metric(
        "B",
        "Error of the prediction: predicted_process_expected_bytes less the measured "
        "device_process_peak_bytes.",
    ),
}
"""Metrics of predictions alone; the others are those of measured runs."""

_ALLOCATED, _RESERVED = "device_allocated_peak_bytes", "device_reserved_peak_bytes"
_ON_HOST, _PROCESS = "host_allocated_peak_bytes", "device_process_peak_bytes"
_ERRORS = {
    _ALLOCATED: ("predicted_minus_measured_allocated_bytes", _ALLOCATED),
    _ON_HOST: ("predicted_minus_measured_allocated_bytes", _ON_HOST),
    _RESERVED: ("predicted_minus_measured_reserved_bytes", _RESERVED),
    _PROCESS: ("predicted_minus_measured_process_bytes", "predicted_process_expected_bytes"),
}
"""Measured metric -> the error's name, and the prediction that it is compared with."""


def definitions() -> dict[str, Metric]:
    """Return every metric that a run or a prediction may hold."""
    return trackers.definitions() | METRICS


def record_of(cell: Cell, prediction: Prediction) -> RunRecord:
    """Return a prediction as the record of a run that was not made."""
    from bench.cell import now  # why here: bench.cell joins predictions to its records

    found = list(_measurements(prediction))
    known = definitions()
    return RunRecord(
        key=cell.spec.key,
        suite=cell.suite,
        group_title=cell.group_title,
        spec=cell.spec,
        status="skipped",
        reason=REASON,
        started_at=now(),
        wall_seconds=0.0,
        model=prediction.model,
        predicted=found,
        definitions={m.metric: known[m.metric] for m in found},
    )


def write(folder: Path, record: RunRecord) -> Path:
    """Write a predicted record into a run's folder, made if need be; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PREDICTION
    write_atomically(path, record.model_dump_json(indent=1) + "\n")
    return path


def joined(folder: Path, record: RunRecord) -> RunRecord:
    """Return a run's record with the prediction that lies in its folder, and its error.

    A prediction of another run, or one that can't be read, is left alone.
    """
    path = folder / PREDICTION
    if not path.exists():
        return record
    try:
        guess = read_record(path)
    except UserError:
        return record  # it can be made again at any time; the run can't
    if guess.key != record.key:
        return record
    predicted = [*guess.predicted, *_errors(record, guess.predicted)]
    known = definitions()
    told = {m.metric: known[m.metric] for m in predicted if m.metric in known}
    defined = guess.definitions | told | record.definitions
    return record.model_copy(update={"predicted": predicted, "definitions": defined})


def is_real_text(spec: RunSpec) -> bool:
    """Whether minibatches differ in length, so that the longest may not be among those traced."""
    return spec.task not in EQUAL_LENGTHS


def of_real_text(spec: RunSpec) -> str:
    """Say which minibatches were traced."""
    if spec.steps < 2:
        return "its one minibatch" if spec.steps else "no minibatch"
    return "minibatches 0 and 1: a longer one takes more"


def _errors(record: RunRecord, predicted: list[Measurement]) -> Iterator[Measurement]:
    guesses = {(m.metric, m.phase): m.value for m in predicted}
    for real in record.measurements:
        name, counterpart = _ERRORS.get(real.metric, ("", ""))
        guess = guesses.get((counterpart, real.phase))
        if guess is not None and real.value is not None and record.status == "completed":
            source = f"{counterpart} predicted, less {real.metric} measured"
            yield _number(name, real.phase, int(guess) - int(real.value), source)


def _measurements(prediction: Prediction) -> Iterator[Measurement]:
    needs = max(prediction.needs, key=lambda figures: figures.allocated)
    text = f", {of_real_text(prediction.spec)}" if is_real_text(prediction.spec) else ""
    if prediction.emulate == "cpu":
        yield from _by_phase(
            _ON_HOST,
            needs,
            lambda p: p.traced,
            needs.traced,
            f"traced on fake tensors, CPU kernels{text}",
        )
        return
    depth = (
        "" if prediction.whole else f", carried on from {_words(prediction.traced_layers)} layers"
    )
    depth += text
    traced, simulated = f"traced on fake tensors{depth}", f"simulated allocator{depth}"
    yield from _by_phase(_ALLOCATED, needs, lambda p: p.allocated, needs.allocated, traced)
    yield from _by_phase(_RESERVED, needs, lambda p: p.reserved, needs.reserved, simulated)
    whole = {
        "predicted_reserved_expandable_bytes": (needs.reserved_expandable, simulated),
        "predicted_least_capacity_bytes": (needs.least, simulated),
        "predicted_process_low_bytes": (needs.process.low, f"{simulated}, calibrated context"),
        "predicted_process_expected_bytes": (
            needs.process.expected,
            f"{simulated}, calibrated context",
        ),
        "predicted_process_high_bytes": (needs.process.high, f"{simulated}, calibrated context"),
    }
    for metric, (value, source) in whole.items():
        yield _number(metric, "run", value, source)


def _by_phase(
    metric: str, needs: Figures, read: Callable[[PhaseFigures], int], whole: int, source: str
) -> Iterator[Measurement]:
    """Yield a figure of the run and of each phase, with those inside it."""
    yield _number(metric, "run", whole, source)
    steps = [read(p) for p in needs.phases if p.phase not in OUTSIDE_STEPS]
    if steps:
        yield _number(metric, "train", max(steps), source)
    for phase in needs.phases:
        if phase.phase not in ("run", "train"):
            yield _number(metric, phase.phase, read(phase), source)


def _number(metric: str, phase: str, value: int, source: str) -> Measurement:
    return Measurement(
        metric=metric, phase=phase, value=value, unit="B", quality="predicted", source=source
    )


def _words(depths: tuple[int, ...]) -> str:
    return ", ".join(map(str, depths[:-1])) + f" and {depths[-1]}"
