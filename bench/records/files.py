"""Reading and writing records: whole or not at all, and no file is trusted blindly."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

from pydantic import ValidationError

from bench.records.errors import UserError
from bench.records.record import SCHEMA_VERSION, RunRecord

RECORD = "record.json"
_REMEDY = "Delete its folder and run the suite again: finished runs are kept."


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader sees all of it or the file as it was before.

    Raises:
        UserError: the disk is full or the folder can't be written to.

    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            os.chmod(name, 0o644)  # mkstemp makes it private; a report is there to be read
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(
            f"Can't write {path}: {error.strerror}. Free some space or choose another --out.", 3
        ) from error


def write_record(folder: Path, record: RunRecord) -> Path:
    """Write ``record`` into ``folder`` (made if need be) and return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORD
    write_atomically(path, record.model_dump_json(indent=1) + "\n")
    return path


def read_record(path: Path) -> RunRecord:
    """Read one ``record.json``.

    Raises:
        UserError: it is not JSON, of a newer schema, or not a record.

    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a whole JSON file ({error}). {_REMEDY}") from error
    version = data.get("schema_version") if isinstance(data, dict) else None
    if not isinstance(version, int):
        raise UserError(f"{path} is no zometer record: no 'schema_version'. {_REMEDY}")
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema version {version}; this zometer reads up to {SCHEMA_VERSION}. "
            "Upgrade zometer."
        )
    try:
        return RunRecord.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"])
        raise UserError(
            f"{path} is no valid record: {where}: {first['msg']}. {_REMEDY}"
        ) from error


def read_results(folder: Path) -> list[RunRecord]:
    """Read every record below ``folder``, in the order of their keys.

    Folders of runs that are still going, or were killed, hold no record and are passed over.

    Raises:
        UserError: the folder is missing or holds no record, or one can't be read.

    """
    if not folder.is_dir():
        raise UserError(f"No results folder {folder}. Run a suite first: zometer run quickstart")
    paths = sorted(folder.rglob(RECORD))
    if not paths:
        raise UserError(
            f"{folder} holds no finished run (no {RECORD} below it). Run a suite first: "
            "zometer run quickstart"
        )
    return [read_record(path) for path in paths]
