"""The parent's side of the helper process."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from bench.sampler import notes
from bench.sampler.loop import Settings
from bench.sampler.trace import TRACE

_START_SECONDS = 32.0  # a little more than opening several boards may take, see gpus.py
_CLOSE_SECONDS = 2.0
_ROOT = Path(__file__).resolve().parents[2]
_PRELOADED = ("LD_PRELOAD", "DYLD_INSERT_LIBRARIES")  # an allocation counter, for one


class Sampler:
    """Samples one process and its devices into ``folder`` until it is closed.

    For example::

        with Sampler(folder, pid=os.getpid(), visible=os.environ.get("CUDA_VISIBLE_DEVICES")):
            ...

    The helper ends with the process that started it, and that process' signals are left alone.
    """

    def __init__(
        self,
        folder: Path,
        *,
        pid: int,
        visible: str | None,
        interval_seconds: float = 0.05,
        nvml: bool = True,
        device: str = "",
    ) -> None:
        """Start nothing yet.

        Args:
            folder: for ``trace.csv.gz`` and ``sampler.json``, which are begun anew.
            pid: of the process to watch.
            visible: as CUDA_VISIBLE_DEVICES; None is "not set".
            interval_seconds: between two readings of memory; longer where one is expensive.
            nvml: whether NVIDIA devices are read.
            device: of the run, as torch names it. Numbers are told of the devices on which the
                driver lists the process; of this one where it lists it on none.

        """
        self._folder = folder
        self._settings = Settings(str(folder), pid, visible, interval_seconds, nvml, device=device)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Return once the first full reading is in, or after 32 s; a failure goes to the notes.

        Boards without persistence mode take seconds each to open. Where the reading comes later,
        the run begins without a baseline, and its record says so.
        """
        arguments = [json.dumps(asdict(self._settings)), str(os.getpid())]
        try:
            for name in (TRACE, notes.NOTES):
                (self._folder / name).unlink(missing_ok=True)
            self._process = subprocess.Popen(
                # -P: the folder that the user stands in may hold a `bench` of its own.
                [sys.executable, "-P", "-m", "bench.sampler", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                env=_environment(),
            )
        except OSError as error:
            self._failed(f"the sampler could not be started: {error}")
            return
        assert self._process.stdin is not None and self._process.stdout is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        said = select.poll()  # not select(): a descriptor may be above its 1024
        said.register(self._process.stdout, select.POLLIN)
        if not said.poll(_START_SECONDS * 1e3):
            # The helper may never come to write notes; where it does, they are to say it too.
            notes.write(self._folder, {**asdict(self._settings), "late": True})
            self._say(b"late\n")
        elif not self._process.stdout.read(1):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            code = self._process.returncode
            self._failed(f"the sampler ended with exit code {code} before its first reading")

    def mark(self) -> None:
        """Ask for a full reading now; return at once."""
        self._say(b"mark\n")

    def close(self) -> None:
        """Take the last full reading and end the helper, within 2 s. May be called again."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        deadline = time.monotonic() + _CLOSE_SECONDS
        try:
            process.stdin.write(b"stop\n")
        except OSError:
            pass  # it has died, which its trace shows
        process.stdin.close()
        try:
            process.wait(_CLOSE_SECONDS * 0.75)
        except subprocess.TimeoutExpired:
            process.kill()
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                pass  # inside a driver that never answers; the system removes it when it does
        process.stdout.close()

    def __enter__(self) -> Sampler:
        """Start."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def _say(self, word: bytes) -> None:
        if self._process is None or self._process.stdin is None:
            return
        try:
            self._process.stdin.write(word)
        except OSError:
            pass  # dead, or so far behind that the pipe is full: the trace shows either

    def _failed(self, reason: str) -> None:
        notes.write(self._folder, {**asdict(self._settings), "failed": reason})


def _environment() -> dict[str, str]:
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    kept = {name: value for name, value in os.environ.items() if name not in _PRELOADED}
    return {**kept, "PYTHONPATH": os.pathsep.join(p for p in paths if p)}
