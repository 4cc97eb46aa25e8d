"""``zometer doctor``: what this machine can measure, exactly or not, and why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import pynvml
import torch
import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from bench import environment, trackers
from zo_core import noise

State = Literal["exact", "ok", "note", "unavailable"]
_COLOURS = {"exact": "green", "ok": "green", "note": "yellow", "unavailable": "red"}


class Finding(BaseModel):
    """One thing looked at."""

    what: str
    state: State
    detail: str


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Say what this machine can measure, and why not where it can't."""
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    findings = list(examine(device))
    if as_json:
        read = environment.read(device)
        body = {
            "environment": read.model_dump(),
            "findings": [f.model_dump() for f in findings],
        }
        print(json.dumps(body, indent=1))
        return
    table = Table("what", "state", "detail", box=None, pad_edge=False)
    for f in findings:
        table.add_row(f.what, f"[{_COLOURS[f.state]}]{f.state}[/]", f.detail)
    Console().print(table)


def examine(device: str) -> Iterator[Finding]:
    """Look at everything that decides what can be measured with ``device``."""
    read = environment.read(device)
    yield Finding(
        what="processor", state="ok", detail=f"{read.cpu}, {read.cpu_cores} cores usable"
    )
    yield Finding(what="memory", state="ok", detail=f"{read.memory_total_bytes / 2**30:.1f} GiB")
    yield _accelerator()
    for module in trackers.modules().values():
        yield _tracker(module, device)
    yield _nvml()
    yield Finding(what="seconds", state="exact", detail="monotonic clock of the process")
    yield Finding(what="energy", state="unavailable", detail="no meter is built in yet")
    kernel, reason = noise.kernel_in_use(torch.device(device))
    yield Finding(
        what="noise kernel",
        state="ok" if kernel != "torch" else "note",
        detail=f"{kernel}: {reason}",
    )
    yield _hub()
    free = shutil.disk_usage(Path.cwd()).free
    yield Finding(what="disk", state="ok", detail=f"{free / 2**30:.1f} GiB free here")


def _tracker(module: ModuleType, device: str) -> Finding:
    """Ask a tracker whether it works here, or in the processes that it is meant for."""
    try:
        if hasattr(module, "elsewhere"):
            return Finding(what=module.TITLE, state="exact", detail=module.elsewhere(device))
        module.tracker(device)
    except trackers.Unavailable as error:
        return Finding(what=module.TITLE, state="unavailable", detail=str(error))
    return Finding(what=module.TITLE, state="exact", detail=f"on {device}")


def _accelerator() -> Finding:
    names = environment.device_names()
    if names:
        return Finding(what="accelerator", state="ok", detail=", ".join(names))
    return Finding(what="accelerator", state="note", detail="torch sees none; runs use the CPU")


def _nvml() -> Finding:
    what = "NVML (device and process memory, power)"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return Finding(what=what, state="unavailable", detail=str(error))
    try:
        detail = f"driver {pynvml.nvmlSystemGetDriverVersion()}; seen, not yet used by a tracker"
        return Finding(what=what, state="note", detail=detail)
    finally:
        pynvml.nvmlShutdown()


def _hub() -> Finding:
    from huggingface_hub import constants  # why: slow to import, and needed here alone

    if constants.HF_HUB_OFFLINE:
        return Finding(what="model hub", state="note", detail="HF_HUB_OFFLINE is set: cache only")
    return Finding(what="model hub", state="ok", detail=f"cache in {constants.HF_HUB_CACHE}")
