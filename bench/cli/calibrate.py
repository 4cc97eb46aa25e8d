"""``zometer calibrate-model``: what one's own GPUs hold and reach, from runs made on them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from bench.predict import calibration, timed
from bench.predict.fits import gib
from bench.records import RECORD, RunRecord, UserError, read_record

_PROCESS, _RESERVED = "device_process_peak_bytes", "device_reserved_peak_bytes"


def calibrate_model(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="Folders or records of real runs.")
    ],
    out: Annotated[Path, typer.Option(help="The file for --calibration.")],
    own_gpus: Annotated[
        Path | None, typer.Option("--gpus", help="GPUs beside the known ones, in TOML.")
    ] = None,
) -> None:
    """Fit the constants of predictions to measured runs, for fit, capacity and predict.

    The CUDA context: of every run that has both the process's peak and torch's reserved one, and
    of the messages of those that were out of memory. The shares of a GPU's peak speeds that
    kernels reach, by dtype: of time runs, by the seconds of their phases and the work of their
    own prediction.
    """
    records = [record for path in results for record in _records(path)]
    told = [(record, n) for record in records for n in _of(record)]
    speeds, left_out = timed.efficiencies(records, own_gpus)
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    if not (told or speeds):
        raise UserError(
            f"Expected runs on CUDA with {_PROCESS} and {_RESERVED}, out of memory, or timed by "
            f"phase, got none in {', '.join(map(str, results))}. Make some: zometer run SUITE"
        )
    fitted = replace(calibration.read(), efficiencies=speeds)
    if told:
        fitted = calibration.refitted(fitted, [number for _, number in told], _source(told))
        band = fitted.context
        print(
            f"CUDA context of {len(told)} runs: {gib(band.expected)}, from {gib(band.low)} to "
            f"{gib(band.high)}."
        )
    for (gpu, dtype), reached in sorted(speeds.items()):
        print(
            f"{gpu}, {dtype}: {reached.mfu[1]:.0%} of its arithmetic, {reached.mbu[1]:.0%} of its "
            f"bandwidth ({reached.source})."
        )
    calibration.write(fitted, out)
    print(f"Written: {out}")


def _source(told: list[tuple[RunRecord, int]]) -> str:
    devices = sorted({d for r, _ in told if r.environment for d in r.environment.devices})
    return f"{len(told)} runs of one's own on {', '.join(devices) or 'unnamed devices'}"


def _records(path: Path) -> Iterable[RunRecord]:
    if not path.exists():
        raise UserError(f"There is no {path}. Give a results folder, or a {RECORD}.")
    files = sorted(path.rglob(RECORD)) if path.is_dir() else [path]
    return [read_record(file) for file in files]


def _of(record: RunRecord) -> list[int]:
    """Return the bytes outside of torch's allocator in a run; none where it does not tell."""
    if not record.spec.device.startswith("cuda"):
        return []
    peaks = {m.metric: m.value for m in record.measurements if m.phase == "run"}
    process, reserved = peaks.get(_PROCESS), peaks.get(_RESERVED)
    if process is not None and reserved is not None and process > reserved:
        return [int(process - reserved)]
    if record.failure is None:
        return []
    try:
        return [calibration.context_in(f"{record.reason} {record.failure.log_tail}")]
    except UserError:
        return []  # another failure
