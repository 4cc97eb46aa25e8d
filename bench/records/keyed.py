"""Records that lie below a results folder, each in one of its key: speeds, costs, checks."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import BaseModel, ValidationError

from bench.records.errors import UserError
from bench.records.files import write_atomically


class Keyed(Protocol):
    """A record with a key, and a time at which it began."""

    @property
    def key(self) -> str:
        """Name of its folder."""

    @property
    def started_at(self) -> str:
        """UTC, ISO 8601."""


M = TypeVar("M", bound=BaseModel)
K = TypeVar("K", bound=Keyed)


def write_keyed(folder: Path, name: str, key: str, record: BaseModel) -> Path:
    """Write a record to file ``name`` in folder ``key`` below ``folder``, and return the file.

    Raises:
        UserError: the folder can't be written to.

    """
    path = folder / key / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"Can't write to {folder}: {error.strerror}. Choose another --out.", 3
        ) from error
    write_atomically(path, record.model_dump_json(indent=1) + "\n")
    return path


def read_keyed(path: Path, kind: type[M], command: str) -> M:
    """Read one record, which ``command`` wrote.

    Raises:
        UserError: it can't be read.

    """
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        why = str(error).splitlines()[0]
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            why = f"{'.'.join(str(p) for p in first['loc'])}: {first['msg']}".lstrip(": ")
        raise UserError(
            f"{path} is no valid record of '{command}' ({why}). Delete it and measure again."
        ) from error


def in_order(records: list[K]) -> list[K]:
    """Return records in the order they began."""
    return sorted(records, key=lambda record: (record.started_at, record.key))
