"""Time runs that were made on GPUs, and the shares of the peaks that they reached.

The work is that of the run's own prediction; the seconds are the median step after the warm-up,
split among its phases as the whole run's were (``phase_self_seconds``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.predict.gpus import Gpu, catalogue, of_device
from bench.predict.log import Work
from bench.predict.predict import predict_all
from bench.predict.prediction import Prediction, dtype_of
from bench.predict.roofline import OUTSIDE_STEPS, Efficiency, Timed, calibrated
from bench.records import RunRecord, UserError

_METRIC = "phase_self_seconds"
_OUTSIDE = OUTSIDE_STEPS | {"resume"}


def seconds_of(record: RunRecord) -> dict[str, float]:
    """Return the seconds of each phase in one step; none where the record does not tell them."""
    steady = (record.steps.seconds or [])[record.spec.warmup_steps :]
    own = {m.phase: m.value or 0.0 for m in record.measurements if m.metric == _METRIC}
    inner = {phase: took for phase, took in own.items() if phase not in _OUTSIDE and took > 0}
    told = record.status == "completed" and record.spec.measure == "time"
    if not (told and steady and inner and record.spec.device.startswith("cuda")):
        return {}
    share = median(steady) / sum(inner.values())
    return {phase: took * share for phase, took in inner.items()}


def efficiencies(
    records: Sequence[RunRecord], own_gpus: Path | None = None
) -> tuple[dict[tuple[str, str], Efficiency], list[str]]:
    """Return what measured runs reached, by GPU and dtype; and what was left out, and why.

    Each run is predicted for it (traced, unless its prediction is kept).
    """
    timed = [(record, took) for record in records if (took := seconds_of(record))]
    placed: dict[tuple[str, str], list[tuple[RunRecord, dict[str, float]]]] = {}
    left_out = []
    for record, took in timed:
        name = _device(record)
        if (gpu := of_device(name, own_gpus)) is None:
            left_out.append(f"{name}: not among the known GPUs. Describe it in a file for --gpus")
        else:
            placed.setdefault((gpu.name, dtype_of(record.spec)), []).append((record, took))
    found = {}
    for (name, dtype), several in placed.items():
        gpu = catalogue(own_gpus)[name]
        try:
            found[name, dtype] = _reached(several, gpu)
        except UserError as error:
            left_out.append(f"{gpu.title} in {dtype}: {error}")
    return found, list(dict.fromkeys(left_out))


def _reached(several: Sequence[tuple[RunRecord, dict[str, float]]], gpu: Gpu) -> Efficiency:
    specs = [record.spec for record, _ in several]
    made = predict_all(specs, emulate="cuda")
    runs, reasons = [], []
    for (_, took), one in zip(several, made, strict=True):
        if isinstance(one, UserError):
            reasons.append(one)
        else:
            runs.append(Timed(_of_a_step(one), took))
    if not runs:
        raise reasons[0]
    return calibrated(runs, gpu)


def _of_a_step(prediction: Prediction) -> dict[str, Work]:
    """Return the work of each phase of a prediction, in one step."""
    steps = max(prediction.steps, 1)
    return {
        phase: Work(
            {dtype: flops // steps for dtype, flops in work.flops.items()},
            work.bytes // steps,
            work.ops // steps,
        )
        for phase, work in prediction.work.items()
        if phase not in _OUTSIDE
    }


def _device(record: RunRecord) -> str:
    """Return what the driver calls the device of a run."""
    devices = record.environment.devices if record.environment else []
    index = int(record.spec.device.partition(":")[2] or 0)
    return devices[index] if index < len(devices) else "unnamed device"
