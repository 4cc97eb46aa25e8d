"""``zometer doctor``: what this machine can measure, exactly or not, and why not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table

from bench import environment, trackers
from bench.checkup import gpus, host
from bench.checkup.finding import Finding
from bench.cli import selfcheck
from bench.devices import rapl
from bench.devices.answer import Unavailable
from bench.devices.nvml import Devices, open_devices
from zo_core import noise

_COLOURS = {
    "exact": "green",
    "sampled": "cyan",
    "ok": "green",
    "note": "yellow",
    "unavailable": "red",
}
_DEADLINE_SECONDS = 2.0
_WIDTH = 124


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--selfcheck", help="Allocate known bytes, do known work, and judge every meter."
        ),
    ] = False,
) -> None:
    """Say what this machine can measure, and why not where it can't.

    With --selfcheck also whether it tells the truth: exit code 3 where a meter does not.
    """
    if check:
        selfcheck.run(as_json)
        return
    with open_devices(deadline_seconds=_DEADLINE_SECONDS) as devices:
        device = _device(devices)
        findings = list(examine(device, devices))
        if as_json:
            print(json.dumps(_body(device, devices, findings), indent=1))
            return
    table = Table("what", "state", "detail", box=None, pad_edge=False)
    for f in findings:
        table.add_row(f.what, f"[{_COLOURS[f.state]}]{f.state}[/]", f.detail)
    console = Console()
    (console if console.is_terminal else Console(width=_WIDTH)).print(table)


def examine(device: str, devices: Devices | None = None) -> Iterator[Finding]:
    """Look at everything that decides what can be measured with ``device``, for two seconds."""
    if devices is None:
        with open_devices(deadline_seconds=_DEADLINE_SECONDS) as opened:
            yield from examine(device, opened)
        return
    cores = environment.usable_cores()
    cpu = f"{environment.cpu_name()}, {cores} cores usable"
    yield Finding(what="processor", state="ok", detail=cpu)
    yield from host.findings()
    # NVML before torch: a context of our own would be found on a GPU that is idle.
    yield from gpus.findings(devices)
    yield _accelerator(devices)
    for module in trackers.modules().values():
        yield _tracker(module, device)
    yield Finding(what="seconds", state="exact", detail="monotonic clock of the process")
    sampled = "by a process of its own; each record says how often it looked, --selfcheck whether"
    yield Finding(what="sampler", state="sampled", detail=f"{sampled} it sees what is known")
    yield from _cpu_energy()
    kernel, reason = noise.kernel_in_use(torch.device(device))
    yield Finding(
        what="noise kernel",
        state="ok" if kernel != "torch" else "note",
        detail=f"{kernel}: {reason}",
    )
    yield _hub()
    free = shutil.disk_usage(Path.cwd()).free
    yield Finding(what="disk", state="ok", detail=f"{free / 2**30:.1f} GiB free here")


def _hangs(devices: Devices) -> bool:
    return devices.unavailable is not None and devices.unavailable.flag == "nvml_hangs"


def _device(devices: Devices) -> str:
    """Return what runs would use; torch is not asked where the driver hangs, for it would too."""
    return "cuda:0" if not _hangs(devices) and torch.cuda.is_available() else "cpu"


def _body(device: str, devices: Devices, findings: list[Finding]) -> dict[str, Any]:
    hangs = _hangs(devices)
    return {
        "environment": None if hangs else environment.read(device).model_dump(),
        "findings": [f.model_dump() for f in findings],
        "devices": gpus.facts(devices),
    }


def _tracker(module: ModuleType, device: str) -> Finding:
    """Ask a tracker whether it works here, or in the processes that it is meant for."""
    try:
        if hasattr(module, "elsewhere"):
            return Finding(what=module.TITLE, state="exact", detail=module.elsewhere(device))
        module.tracker(device)
    except trackers.Unavailable as error:
        return Finding(what=module.TITLE, state="unavailable", detail=str(error))
    return Finding(what=module.TITLE, state="exact", detail=f"on {device}")


def _accelerator(devices: Devices) -> Finding:
    what = "accelerator"
    if _hangs(devices):
        text = "torch was not asked: it would hang with the driver"
        return Finding(what=what, state="unavailable", detail=text)
    names = environment.device_names()
    if names:
        return Finding(what=what, state="ok", detail=", ".join(names))
    return Finding(what=what, state="note", detail="torch sees none; runs use the CPU")


def _cpu_energy() -> Iterator[Finding]:
    what = "CPU energy (RAPL)"
    found = rapl.packages()
    if isinstance(found, Unavailable):
        yield Finding(what=what, state="unavailable", detail=found.reason)
        return
    for package in found:
        read = package.energy_joules()
        if isinstance(read, Unavailable):
            yield Finding(what=what, state="unavailable", detail=read.reason)
        else:
            yield Finding(what=what, state="exact", detail=f"{package.name}, {read.source}")


def _hub() -> Finding:
    from huggingface_hub import constants  # why: slow to import, and needed here alone

    if constants.HF_HUB_OFFLINE:
        return Finding(what="model hub", state="note", detail="HF_HUB_OFFLINE is set: cache only")
    return Finding(what="model hub", state="ok", detail=f"cache in {constants.HF_HUB_CACHE}")
