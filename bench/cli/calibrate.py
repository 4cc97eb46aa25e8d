"""``zometer calibrate-model``: the CUDA context of one's own GPUs, from runs made on them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from bench.predict import calibration
from bench.predict.fits import gib
from bench.records import RECORD, RunRecord, UserError, read_record

_PROCESS, _RESERVED = "device_process_peak_bytes", "device_reserved_peak_bytes"


def calibrate_model(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="Folders or records of real runs.")
    ],
    out: Annotated[Path, typer.Option(help="The file for --calibration.")],
) -> None:
    """Fit what a process holds beside its tensors, for fit and capacity, to measured runs.

    Taken from every run on CUDA that has both the process's peak and torch's reserved one, and
    from the messages of those that were out of memory.
    """
    told = [(record, n) for path in results for record in _records(path) for n in _of(record)]
    if not told:
        raise UserError(
            f"Expected runs on CUDA with {_PROCESS} and {_RESERVED}, or out of memory, got none "
            f"in {', '.join(map(str, results))}. Make some: zometer run SUITE"
        )
    found = [number for _, number in told]
    devices = sorted({d for r, _ in told if r.environment for d in r.environment.devices})
    source = f"{len(found)} runs of one's own on {', '.join(devices) or 'unnamed devices'}"
    fitted = calibration.refitted(calibration.read(), found, source)
    calibration.write(fitted, out)
    band = fitted.context
    print(
        f"CUDA context of {len(found)} runs: {gib(band.expected)}, from {gib(band.low)} to "
        f"{gib(band.high)}. Written: {out}"
    )


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
