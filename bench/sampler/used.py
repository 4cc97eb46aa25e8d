"""Which of the visible devices a run used: the others' numbers are not its own.

Without CUDA_VISIBLE_DEVICES a process sees every board of a machine, whoever works there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.sampler import trace
from bench.sampler.collected import Shape


def devices(path: Path, shape: Shape, notes: Mapping[str, Any]) -> list[str]:
    """Return the UUIDs of the devices that the run used, in CUDA's order.

    Those on which the driver listed the run's process; where it listed it nowhere, the one that
    the run was given; where that is not known either, all. Reads the trace where it has to.
    """
    known = {d["uuid"]: d.get("ordinal") for d in notes.get("devices", [])}
    if len(known) == 1:
        return list(known)
    seen: dict[str, None] = dict.fromkeys(known)
    held = set()
    for row in trace.read(path):
        if row.source != "nvml":
            continue
        seen.setdefault(row.device)
        if row.metric == "process_used_bytes" and shape.begin_ns <= row.t_ns <= shape.end_ns:
            held.add(row.device)
    if not held:
        given = _ordinal(str(notes.get("device") or ""))
        held = {uuid for uuid, ordinal in known.items() if ordinal == given is not None}
    return [uuid for uuid in seen if uuid in held or not held]


def of_those(notes: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, Any]:
    """Return the notes without what they say of other devices."""
    listed = notes.get("devices", [])
    others = {device["uuid"] for device in listed} - set(wanted)
    return {
        **notes,
        "devices": [device for device in listed if device["uuid"] not in others],
        "refusals": [r for r in notes.get("refusals", []) if r["device"] not in others],
    }


def _ordinal(device: str) -> int | None:
    """Return the number of ``cuda:N``; torch takes 0 where none is said."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return None
    return int(number) if number.isdigit() else 0
