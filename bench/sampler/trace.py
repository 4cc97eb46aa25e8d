"""The trace file: a row a reading, compressed, readable whenever its writer dies.

``trace.csv.gz`` holds ``t_ns,source,device,metric,value``. Rows are on their way to the disk a
quarter of a second after they were read; a file cut off anywhere is read up to its last whole row.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

TRACE = "trace.csv.gz"
HEADER = "t_ns,source,device,metric,value"

_GZIP = 31  # zlib's window bits that mean "with gzip's header"
_FLUSH_NS = 250_000_000
_RESERVE = 32 << 20  # bytes of the disk that the trace leaves to the run's events and record
_MOST_PENDING = 200_000  # rows kept in memory while the disk takes none: about 20 MB


class Row(NamedTuple):
    """One number that was read."""

    t_ns: int
    source: str
    device: str
    metric: str
    value: float


class TraceWriter:
    """Writes rows; a disk that is full costs none that came before.

    What the disk refuses is kept in memory and tried again with the next rows.
    """

    def __init__(self, path: Path) -> None:
        """Begin the file anew."""
        self.problem: str | None = None
        """Why rows were kept back at some time."""
        self.lost = 0
        """Rows given up."""
        self._compressor = zlib.compressobj(level=6, wbits=_GZIP)
        self._pending = [HEADER]
        self._good = 0
        self._flushed_ns = 0
        self._file: int | None = None
        self.opened = True
        """Whether there is a file at all."""
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            self.opened = False
            self._refused(error)

    def write(self, rows: Iterable[Row], now_ns: int) -> None:
        """Take rows; those of the last quarter of a second may still be in memory."""
        self._pending += [f"{r.t_ns},{r.source},{r.device},{r.metric},{r.value!r}" for r in rows]
        if now_ns - self._flushed_ns >= _FLUSH_NS:
            self._flushed_ns = now_ns
            self.flush()

    def flush(self, end: bool = False) -> None:
        """Hand everything to the system."""
        if excess := max(0, len(self._pending) - _MOST_PENDING):
            del self._pending[:excess]
            self.lost += excess
        if self._file is None or (not self._pending and not end):
            return
        before = self._compressor.copy()
        text = "".join(f"{line}\n" for line in self._pending).encode()
        data = self._compressor.compress(text)
        data += self._compressor.flush(zlib.Z_FINISH if end else zlib.Z_SYNC_FLUSH)
        try:
            _leave_room(self._file)
            _write_all(self._file, data)
        except OSError as error:
            self._compressor = before
            self._refused(error)
            return
        self._good += len(data)
        self._pending.clear()

    def close(self) -> None:
        """Write what is left; afterwards ``problem`` and ``lost`` are final."""
        self.flush(end=True)
        self.lost += len(self._pending)
        self._pending.clear()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _refused(self, error: OSError) -> None:
        self.problem = f"the trace could not be written: {error.strerror or error}"
        if self._file is not None:
            # Half a block would spoil what comes after it.
            os.ftruncate(self._file, self._good)
            os.lseek(self._file, self._good, os.SEEK_SET)


def _leave_room(file: int) -> None:
    disk = os.fstatvfs(file)
    free = disk.f_bavail * disk.f_frsize
    if free < _RESERVE:
        text = f"only {free} bytes are free, and {_RESERVE} are left to the run and its record"
        raise OSError(errno.ENOSPC, text)


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def read(path: Path) -> Iterator[Row]:
    """Read the rows, of a file cut off as well; none where there is no file."""
    rest = ""
    try:
        for text in _inflated(path):
            *lines, rest = (rest + text).split("\n")
            for line in lines:
                row = _row(line)
                if row is not None:
                    yield row
    except FileNotFoundError:
        return


def _inflated(path: Path) -> Iterator[str]:
    decoder = zlib.decompressobj(wbits=_GZIP)
    with path.open("rb") as file:
        while data := file.read(1 << 16):
            try:
                text = decoder.decompress(data)
            except zlib.error:
                return  # cut off, or damaged: what came before stands
            yield text.decode("ascii", errors="replace")


def _row(line: str) -> Row | None:
    fields = line.split(",")
    if len(fields) != 5 or line == HEADER:
        return None
    try:
        return Row(int(fields[0]), fields[1], fields[2], fields[3], float(fields[4]))
    except ValueError:
        return None
