"""Runs of the grid compared in processes of their own; what is finished is kept.

While it goes on ``cells.jsonl`` in the record's folder has a line for each run, below a line with
the code and the libraries that they were compared with. A command that is given again goes on
there, or begins anew where these have changed.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from pydantic import ValidationError

from bench.predict import pool
from bench.records import Environment, UserError
from bench.records.prediction_check import (
    PREDICTION_CHECK,
    CheckCell,
    CheckedCell,
    PredictionCheck,
    read_prediction_check,
)

CELLS = "cells.jsonl"

_SECONDS = 900.0  # of one run; they take 2 to 20
_ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_OFFLINE": "1",
    "KINETO_LOG_LEVEL": "99",  # the profiler says when it begins and ends, twice a run
}


def compared(
    folder: Path, cells: Sequence[CheckCell], environment: Environment, workers: int
) -> Iterator[tuple[CheckedCell, bool]]:
    """Yield each run in order, and whether it was kept from an earlier command.

    Raises:
        UserError: the folder can't be written to.

    """
    kept = _kept(folder, environment)
    missing = [cell for cell in cells if cell.name not in kept]
    made = pool.results(
        pool.How(_outcome, _begin, _lost, _spoils), missing, workers=workers, seconds=_SECONDS
    )
    with _opened(folder, environment, kept.values()) as file:
        for cell in cells:
            known = kept.get(cell.name)
            if known is not None:
                yield known, True
                continue
            found = next(made)
            file.write(found.model_dump_json() + "\n")
            file.flush()
            yield found, False


def finished(folder: Path) -> None:
    """Remove the lines, once the record is written."""
    (folder / CELLS).unlink(missing_ok=True)


def _kept(folder: Path, environment: Environment) -> dict[str, CheckedCell]:
    """Return what an earlier command found with the same code and libraries, by name."""
    found: list[CheckedCell] = []
    if (record := _finished(folder)) is not None and _made_with(record.environment) == _made_with(
        environment
    ):
        found += record.cells
    with suppress(OSError):
        first, *lines = (folder / CELLS).read_text(encoding="utf-8").splitlines() or [""]
        if first == json.dumps(_made_with(environment)):
            for line in lines:
                with suppress(ValidationError):  # cut off: it is compared again
                    found.append(CheckedCell.model_validate_json(line))
    return {one.cell.name: one for one in found if one.reason is None}


def _finished(folder: Path) -> PredictionCheck | None:
    path = folder / PREDICTION_CHECK
    return read_prediction_check(path) if path.exists() else None


def _made_with(environment: Environment) -> dict[str, Any]:
    return {"code": environment.code, "packages": environment.packages}


def _opened(folder: Path, environment: Environment, kept: Iterable[CheckedCell]) -> TextIO:
    """Return the file of lines, opened anew with those that are kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / CELLS, "w", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"Can't write to {folder}: {error.strerror}. Choose another --out.", 3
        ) from error
    file.write(json.dumps(_made_with(environment)) + "\n")
    file.writelines(one.model_dump_json() + "\n" for one in kept)
    file.flush()
    return file


def _begin() -> None:
    """Prepare a process, before it imports torch; an interrupt is the parent's to answer."""
    os.environ.update(_ENVIRONMENT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.WARNING)  # libraries', of what does not matter here
    warnings.simplefilter("ignore")


def _outcome(cell: CheckCell) -> CheckedCell:
    """Compare one run; in a process of its own, where no mistake may end those of the others."""
    from bench.predict import against_cpu, grid  # why here: the parent need not import torch

    begun = time.perf_counter()
    try:
        request = grid.request(cell)
        found = against_cpu.compare(request)
    except Exception as error:  # why: whatever it is, the other runs go on
        lines = str(error).strip().splitlines()
        told = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        return CheckedCell(cell=cell, seconds=time.perf_counter() - begun, reason=told)
    return CheckedCell(
        cell=cell,
        model=request.spec.model,
        traced=found.traced,
        real=found.real,
        seconds=time.perf_counter() - begun,
    )


def _spoils(found: CheckedCell) -> bool:
    """Whether it failed: torch may be left in a mode that makes all others fail too."""
    return found.reason is not None


def _lost(cell: CheckCell, why: pool.Why) -> CheckedCell:
    told = "the process died, perhaps for want of memory (a run takes up to 2 GiB)"
    if why == "too long":
        told = f"it took longer than {_SECONDS:.0f} s"
    return CheckedCell(cell=cell, seconds=0.0, reason=told)
