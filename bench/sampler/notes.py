"""What stands beside the trace: facts, reasons for what is not in it, and what went wrong."""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.devices.answer import Answer, Unavailable
from bench.sampler.readings import Reading

NOTES = "sampler.json"
LATE = "the sampler's first reading came after the run had begun"
"""Why there is no baseline, where the notes have ``late``."""
_MOST_REFUSALS = 300


@dataclass
class Refusal:
    """A value that could not be had, why, and when."""

    source: str
    device: str
    metric: str
    reason: str
    flag: str | None
    first_ns: int
    last_ns: int
    count: int


class Refusals:
    """Collects them: one entry for each value and reason, however often it came."""

    def __init__(self) -> None:
        """Begin with none."""
        self._found: dict[tuple[str, str, str, str], Refusal] = {}
        self.changed = False
        """Whether one came that was not there the last time somebody set this to False."""

    def add(self, reading: Reading) -> None:
        """Note a reading that has no value."""
        answer = reading.answer
        if isinstance(answer, Answer):
            return
        key = (reading.source, reading.device, reading.metric, answer.reason)
        known = self._found.get(key)
        if known is not None:
            known.last_ns, known.count = reading.t_ns, known.count + 1
        elif len(self._found) < _MOST_REFUSALS:
            times = (reading.t_ns, reading.t_ns, 1)
            self._found[key] = Refusal(*key, answer.flag, *times)
            self.changed = True

    def listed(self) -> list[dict[str, Any]]:
        """Return them for the file."""
        return [asdict(refusal) for refusal in self._found.values()]


def unavailable(answer: Unavailable | None) -> dict[str, Any] | None:
    """Return a reason for the file."""
    return None if answer is None else {"reason": answer.reason, "flag": answer.flag}


def write(folder: Path, notes: dict[str, Any]) -> str | None:
    """Write the file in one piece; return why it could not be, or None."""
    path = folder / NOTES
    unfinished = path.with_name(f"{NOTES}.new")
    try:
        unfinished.write_text(json.dumps(notes, indent=1, default=str) + "\n", encoding="utf-8")
        os.replace(unfinished, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        return f"{NOTES} could not be written: {error.strerror or error}"
    return None


def read(folder: Path) -> dict[str, Any]:
    """Read the file; empty where there is none, or none that can be read."""
    try:
        found = json.loads((folder / NOTES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
