"""Where a run took place: everything that may explain why a number differs from another's."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import psutil
import torch

from bench.records import Environment, UserError
from bench.snapshot import VARIABLE as SNAPSHOT_VARIABLE
from zo_core import noise

_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "bitsandbytes",
    "numpy",
    "numba",
    "datasets",
    "accelerate",
    "nvidia-ml-py",
)
_CODE = ("zo_core", "bench")
_CODE_FILES = ("*.py", "*.c")
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUDA_MODULE_LOADING",
    "HIP_VISIBLE_DEVICES",
    "ROCR_VISIBLE_DEVICES",
    "ZE_AFFINITY_MASK",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    SNAPSHOT_VARIABLE,
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "LD_PRELOAD",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "MKL_NUM_THREADS",
)


def version(distribution: str) -> str | None:
    """Return the installed version, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def usable_cores() -> int:
    """Count the cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_name() -> str:
    """Return the processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def device_names() -> list[str]:
    """Return the names of the accelerators that torch sees."""
    kind = _accelerator()
    if kind is None:
        return []
    vendor = getattr(torch, kind)
    if not hasattr(vendor, "get_device_name"):  # torch.mps: one device, without a name
        return [f"{kind} of {cpu_name()}"] * vendor.device_count()
    return [vendor.get_device_name(i) for i in range(vendor.device_count())]


def _accelerator() -> str | None:
    """Return the kind of accelerator that torch sees here."""
    if hasattr(torch, "accelerator"):
        found = torch.accelerator.current_accelerator(check_available=True)
        return None if found is None else found.type
    return "cuda" if torch.cuda.is_available() else None


def allocator(device: str) -> str | None:
    """Return the kind of torch's allocator on a CUDA device; None elsewhere."""
    here = device.startswith("cuda") and torch.cuda.is_available()
    return str(torch.cuda.memory.get_allocator_backend()) if here else None


def container(root: Path = Path("/"), variables: Mapping[str, str] = os.environ) -> str | None:
    """Return what suggests that this process lives in a container; None where nothing does.

    There, the driver may list processes by the host's numbers, and limits are the container's.
    """
    for mark in (".dockerenv", "run/.containerenv"):
        if (root / mark).exists():
            return f"/{mark} is there"
    for name in ("KUBERNETES_SERVICE_HOST", "container"):
        if name in variables:
            return f"{name} is set"
    numbers = _line(root / "proc/self/status", "NSpid:").split()[1:]
    if len(numbers) > 1:
        return f"the process has {len(numbers)} numbers: NSpid {' '.join(numbers)}"
    first = _line(root / "proc/1/comm", "")
    if first and first not in ("init", "systemd"):
        return f"process 1 is {first}"
    return None


def _line(path: Path, start: str) -> str:
    """Return the first line that starts so; empty where there is none to read."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(start)), "")


@functools.cache
def code() -> str:
    """Return 16 hexadecimal digits that stand for the source files that decide a run."""
    root = Path(__file__).resolve().parent.parent
    return digest_of(root, [root / folder for folder in _CODE])


def digest_of(root: Path, folders: list[Path]) -> str:
    """Return 16 hexadecimal digits that stand for the sources in ``folders``, below ``root``."""
    digest = hashlib.sha256()
    found = [p for folder in folders for kind in _CODE_FILES for p in folder.rglob(kind)]
    for path in sorted(found):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def check_device(device: str) -> None:
    """Refuse an accelerator that torch does not see.

    Raises:
        UserError: it is not here.

    """
    wanted = torch.device(device)
    if wanted.type == "cpu":
        return
    seen = getattr(torch, wanted.type).device_count()
    if (wanted.index or 0) >= seen:
        raise UserError(
            f"Device '{device}' is not here: torch sees {seen} {wanted.type.upper()} devices."
        )


def read(device: str) -> Environment:
    """Describe this process and its machine."""
    found = {name: version(name) for name in _PACKAGES}
    commit, dirty = _commit()
    return Environment(
        zometer=version("zometer") or "not installed",
        commit=commit,
        dirty=dirty,
        code=code(),
        python=platform.python_version(),
        packages={name: v for name, v in found.items() if v is not None},
        platform=platform.platform(),
        cpu=cpu_name(),
        cpu_cores=usable_cores(),
        threads=torch.get_num_threads(),
        memory_total_bytes=psutil.virtual_memory().total,
        devices=device_names(),
        allocator=allocator(device),
        container=container(),
        noise_kernel=noise.kernel_in_use(torch.device(device))[0],
        variables={name: os.environ[name] for name in _VARIABLES if name in os.environ},
    )


def _commit() -> tuple[str | None, bool | None]:
    """Return the commit of the checkout that this code lies in, and whether it was changed."""
    folder = Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():
        return None, None
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit, bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None, None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
