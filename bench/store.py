"""What of a suite is done already: the results folder is the only memory between invocations."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from bench.cell import Cell, set_aside, tries
from bench.records import RECORD, RunRecord, UserError, read_record

KEPT = ("completed", "out_of_memory", "timed_out")
"""Statuses that are a result. A run that ended otherwise is run again: what it lacked (a package,
a device, the hub) may be there by now."""

_SPACE_BYTES = 64 * 2**20


@contextmanager
def opened(results: Path) -> Iterator[None]:
    """Hold ``results`` for one invocation.

    Raises:
        UserError: it can't be made or written to, or another invocation holds it.

    """
    try:
        results.mkdir(parents=True, exist_ok=True)
        lock = FileLock(results / ".lock")
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"Another zometer is writing to {results}. Wait for it, or choose another --out.", 3
        ) from error
    except OSError as error:
        raise UserError(
            f"Can't write to {results}: {error.strerror}. Choose another --out.", 3
        ) from error
    try:
        yield
    finally:
        lock.release()


def check_space(results: Path) -> None:
    """Look whether there is room for one more run.

    Raises:
        UserError: the disk is nearly full.

    """
    results.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(results).free
    if free < _SPACE_BYTES:
        raise UserError(
            f"Only {free} bytes are free at {results}, {_SPACE_BYTES} are needed. "
            "Free some space or choose another --out; finished runs are kept.",
            3,
        )


def finished(results: Path, cells: Iterable[Cell]) -> dict[str, RunRecord]:
    """Return the records, by key, of those cells that need not be run again."""
    found = {}
    for cell in cells:
        path = cell.folder(results) / RECORD
        if path.exists():
            record = read_record(path)
            if record.status in KEPT:
                found[record.key] = record
    return found


def invalid(record: RunRecord) -> bool:
    """Return whether a run carries a flag that forbids the use of its numbers."""
    return any(flag.severity == "invalid" for flag in record.flags)


def queue_again(
    results: Path, cells: Iterable[Cell], records: dict[str, RunRecord], most: int
) -> list[Cell]:
    """Set the records of invalid runs aside, and return their cells, to be run again.

    They are taken out of ``records`` too.
    A run is tried again ``most`` times in all, however many invocations that takes; the record of
    each try is kept with its files, as ``try1/record.try1.json`` and so on.
    """
    again = []
    for cell in cells:
        record = records.get(cell.spec.key)
        folder = cell.folder(results)
        if record is not None and invalid(record) and tries(folder) < most:
            set_aside(folder)
            del records[cell.spec.key]
            again.append(cell)
    return again
