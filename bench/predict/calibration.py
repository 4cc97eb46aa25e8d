"""Constants of GPUs with their sources, from a data file: what a process holds beside its tensors.

A file of one's own may hold, by GPU and dtype, the shares of the peaks that real runs reached
(``[efficiency."a100-80gb".bfloat16]``); where it does not, ``bench.predict.roofline`` assumes a
band.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

from bench.predict.roofline import Efficiency
from bench.records import UserError

_TABLES = ("context", "workspace", "nccl")
_UNITS = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


@dataclass(frozen=True)
class Band:
    """A quantity that is known to lie somewhere: low, expected, high."""

    low: int
    expected: int
    high: int

    def __add__(self, other: Band | int) -> Band:
        """Add bounds to bounds, or a number to all."""
        if isinstance(other, int):
            return Band(self.low + other, self.expected + other, self.high + other)
        sums = (self.low + other.low, self.expected + other.expected, self.high + other.high)
        return Band(*sums)


@dataclass(frozen=True)
class Calibration:
    """Bytes outside of the tensors, speeds, and where each number is from."""

    context: Band
    workspace: dict[str, int]
    """By architecture, with ``default``."""
    nccl: tuple[int, int]
    """Of a communicator of two ranks, and of more."""
    sources: dict[str, str]
    verified: dict[str, bool]
    efficiencies: Mapping[tuple[str, str], Efficiency] = field(default_factory=dict)
    """By name of the GPU and dtype of its products; none is packaged."""

    def workspace_of(self, architecture: str | None) -> int:
        """Return cuBLAS's workspace on an architecture ("hopper")."""
        return self.workspace.get(architecture or "", self.workspace["default"])

    def communicators(self, ranks: int) -> Band:
        """Return what NCCL takes on each of ``ranks`` devices; nothing on one."""
        if ranks < 2:
            return Band(0, 0, 0)
        two, more = self.nccl
        return Band(0, two, more) if ranks == 2 else Band(0, more, more)


def read(path: Path | None = None) -> Calibration:
    """Return the packaged constants, or those of a file of the same form.

    Raises:
        UserError: the file is not there, or misses a constant.

    """
    try:
        source = files("bench.predict") / "calibration.toml" if path is None else path
        data = tomllib.loads(source.read_text(encoding="utf-8"))
        context, workspace, nccl = data["context"], dict(data["workspace"]), data["nccl"]
        about = {name: (data[name]["source"], data[name]["verified"]) for name in _TABLES}
        del workspace["source"], workspace["verified"]
        workspace["default"] += 0  # must be there
        return Calibration(
            Band(context["low"], context["expected"], context["high"]),
            workspace,
            (nccl["two_ranks"], nccl["more_ranks"]),
            {name: source for name, (source, _) in about.items()},
            {name: verified for name, (_, verified) in about.items()},
            _efficiencies(data.get("efficiency", {})),
        )
    except (OSError, KeyError, TypeError, ValueError, tomllib.TOMLDecodeError) as error:
        raise UserError(
            f"Expected a calibration file like bench/predict/calibration.toml at {path}, got "
            f"{type(error).__name__}: {error}."
        ) from None


def _efficiencies(data: Mapping[str, Any]) -> dict[tuple[str, str], Efficiency]:
    return {
        (gpu, dtype): Efficiency(_shares(told["mfu"]), _shares(told["mbu"]), told["source"])
        for gpu, dtypes in data.items()
        for dtype, told in dtypes.items()
    }


def _shares(told: Sequence[float]) -> tuple[float, float, float]:
    good, middling, poor = map(float, told)
    if not 1 >= good >= middling >= poor > 0:
        raise ValueError(f"{told} is not good, middling, poor: 1 or less, falling, above 0")
    return good, middling, poor


def refitted(calibration: Calibration, contexts: Sequence[int], source: str) -> Calibration:
    """Return the constants with the context's band taken from measurements.

    Args:
        calibration: what the other constants are taken from.
        contexts: bytes of the process that are not reserved by torch, one a measurement.
        source: what was measured: GPU, driver, versions.

    """
    if not contexts:
        raise UserError("Expected at least one measurement to calibrate by, got none.")
    band = Band(min(contexts), int(median(contexts)), max(contexts))
    return replace(
        calibration,
        context=band,
        sources={**calibration.sources, "context": source},
        verified={**calibration.verified, "context": True},
    )


def context_in(message: str) -> int:
    """Return the bytes outside of torch's allocator that an out-of-memory message tells of.

    >>> context_in("this process has 31.34 GiB memory in use. Of the allocated memory 30.74 GiB "
    ...     "is allocated by PyTorch, and 19.41 MiB is reserved by PyTorch but unallocated.") >> 20
    594

    Raises:
        UserError: the three figures are not in the message.

    """
    size = r"([\d.]+) (bytes|KiB|MiB|GiB)"
    found = [
        re.search(pattern, message)
        for pattern in (
            f"has {size} memory in use",
            f"memory {size} is allocated",
            f"{size} is reserved by PyTorch but",
        )
    ]
    values = [float(m[1]) * _UNITS[m[2]] for m in found if m is not None]
    if len(values) < len(found):
        raise UserError(
            "Expected torch's whole out-of-memory message (memory in use, allocated, reserved but "
            "unallocated), got another text."
        )
    return int(values[0] - values[1] - values[2])


def write(calibration: Calibration, path: Path) -> None:
    """Write a file that :func:`read` reads."""
    context, (two, more) = calibration.context, calibration.nccl
    tables = {
        "context": {"low": context.low, "expected": context.expected, "high": context.high},
        "workspace": calibration.workspace,
        "nccl": {"two_ranks": two, "more_ranks": more},
    }
    lines = []
    for name, numbers in tables.items():
        lines += [f"[{name}]", *(f"{key} = {value}" for key, value in numbers.items())]
        lines += [
            f"source = {_quoted(calibration.sources[name])}",
            f"verified = {str(calibration.verified[name]).lower()}",
            "",
        ]
    for (gpu, dtype), shares in sorted(calibration.efficiencies.items()):
        lines += [
            f"[efficiency.{_quoted(gpu)}.{_quoted(dtype)}]  # good, middling, poor",
            f"mfu = {[round(share, 6) for share in shares.mfu]}",
            f"mbu = {[round(share, 6) for share in shares.mbu]}",
            f"source = {_quoted(shares.source)}",
            "",
        ]
    path.write_text("\n".join(lines), encoding="utf-8")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
