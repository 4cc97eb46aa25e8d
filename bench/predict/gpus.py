"""The GPUs that a plan may name: memory that torch can use, speed, links; from ``gpus.toml``."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from bench.records import UserError
from bench.records.errors import unknown

GIB = 1 << 30

_ALIASES = {
    "a100": "a100-80gb",
    "a100-40": "a100-40gb",
    "a100-80": "a100-80gb",
    "h100": "h100-80gb",
    "h100-sxm": "h100-80gb",
    "h100-80gb-sxm": "h100-80gb",
    "h100-80gb-pcie": "h100-pcie",
    "h200-141gb": "h200",
    "b200-180gb": "b200",
    "v100": "v100-32gb",
    "3090": "rtx-3090",
    "4090": "rtx-4090",
    "5090": "rtx-5090",
    "rtx3090": "rtx-3090",
    "rtx4090": "rtx-4090",
    "rtx5090": "rtx-5090",
}

_OTHER_CARDS = frozenset({"ti", "super", "laptop", "mobile", "mig", "nvl", "max-q", "d"})
"""Words by which a driver names a card that is not the one of the name without them."""


@dataclass(frozen=True)
class Gpu:
    """One model of GPU."""

    name: str
    title: str
    architecture: str
    """Lower case, as the calibration file names it ("hopper")."""
    usable: int
    """Bytes that torch reports as the device's total capacity."""
    tflops: Mapping[str, float]
    """Dense TFLOP/s by dtype ("bfloat16"); ``tf32`` where float32 products are allowed it."""
    bandwidth: float
    """Bytes a second."""
    link: str
    link_bandwidth: float
    """Bytes a second to other GPUs, both directions together."""
    source: str
    source_usable: str
    price_per_hour: float | None = None
    """Of one card, in the user's currency; no price is packaged."""

    def flops(self, dtype: str) -> float:
        """Return operations a second in a dtype; what has no unit of its own runs as float32."""
        return self.tflops.get(dtype, self.tflops["float32"]) * 1e12


@cache
def catalogue(path: Path | None = None) -> dict[str, Gpu]:
    """Return every GPU by name, from the packaged file and, over it, the user's.

    Raises:
        UserError: the user's file can't be read, or lacks a field of a new GPU.

    """
    packaged = (files("bench.predict") / "gpus.toml").read_text(encoding="utf-8")
    entries: dict[str, dict[str, Any]] = tomllib.loads(packaged)
    if path is not None:
        for name, fields in _users(path).items():
            entries[name] = {**entries.get(name, {"source": str(path)}), **fields}
    return {name: _gpu(name, fields) for name, fields in entries.items()}


def find(name: str, path: Path | None = None) -> Gpu:
    """Return the GPU of that name, however it is spelt.

    >>> find("NVIDIA H100 80GB").title, find("rtx_4090").usable >> 30
    ('NVIDIA H100-80GB SXM', 23)

    Raises:
        UserError: there is none; the nearest name is told.

    """
    known = catalogue(path)
    spelt = re.sub(r"[\s_]+", "-", name.strip().lower())
    spelt = re.sub(r"^(nvidia|amd|tesla|geforce|instinct)-", "", spelt)
    spelt = re.sub(r"^(nvidia|amd|tesla|geforce|instinct)-", "", spelt)
    spelt = re.sub(r"(\d)-(gb|gib)$", r"\1gb", spelt)
    spelt = spelt if spelt in known else _ALIASES.get(spelt, spelt)
    if spelt not in known:
        raise unknown("GPU", name, known)
    return known[spelt]


def of_device(name: str, path: Path | None = None) -> Gpu | None:
    """Return the GPU that a driver calls by that name; None where it is not in the catalogue.

    >>> [of_device(n).name for n in ("NVIDIA A100-SXM4-80GB", "NVIDIA H100 PCIe", "Tesla T4")]
    ['a100-80gb', 'h100-pcie', 't4']
    >>> of_device("NVIDIA GeForce RTX 3090 Ti") is None
    True

    """
    words = set(re.split(r"[^a-z0-9.]+", name.lower()))
    if words & _OTHER_CARDS:
        return None
    held = [gpu for gpu in catalogue(path).values() if set(gpu.name.split("-")) <= words]
    named = [gpu for gpu in catalogue(path).values() if gpu.title.lower() == name.lower()]
    return max([*held, *named], key=lambda gpu: (gpu in named, gpu.name.count("-")), default=None)


def _users(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"Expected a GPU catalogue in TOML at {path}, got: {error}.") from None


def _gpu(name: str, fields: Mapping[str, Any]) -> Gpu:
    try:
        return Gpu(
            name,
            fields["title"],
            fields["architecture"],
            int(fields["usable_gib"] * GIB),
            {"float32": fields["tflops"]["float32"], **fields["tflops"]},
            fields["bandwidth_gbs"] * 1e9,
            fields.get("link", "PCIe"),
            fields.get("link_gbs", 32) * 1e9,
            fields.get("source", ""),
            fields.get("source_usable", ""),
            fields.get("price_per_hour"),
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"GPU '{name}': expected title, architecture, usable_gib, tflops (with float32) and "
            f"bandwidth_gbs, got {type(error).__name__}: {error}."
        ) from None
