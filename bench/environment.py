"""Where a run took place: everything that may explain why a number differs from another's."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import psutil
import torch

from bench.records import Environment, UserError
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
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "PYTORCH_ALLOC_CONF",
    "PYTORCH_CUDA_ALLOC_CONF",
    "MALLOC_ARENA_MAX",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TRIM_THRESHOLD_",
    "LD_PRELOAD",
    "OMP_NUM_THREADS",
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
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _code() -> str:
    """Return 16 hexadecimal digits that stand for the source files that decide a run."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parent.parent
    for path in sorted(p for folder in _CODE for p in (root / folder).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def check_device(device: str) -> None:
    """Refuse a CUDA device that torch does not see.

    Raises:
        UserError: it is not here.

    """
    wanted = torch.device(device)
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"Device '{device}' is not here: torch sees {torch.cuda.device_count()} CUDA devices."
        )


def read(device: str) -> Environment:
    """Describe this process and its machine."""
    found = {name: version(name) for name in _PACKAGES}
    commit, dirty = _commit()
    return Environment(
        zometer=version("zometer") or "not installed",
        commit=commit,
        dirty=dirty,
        code=_code(),
        python=platform.python_version(),
        packages={name: v for name, v in found.items() if v is not None},
        platform=platform.platform(),
        cpu=cpu_name(),
        cpu_cores=usable_cores(),
        threads=torch.get_num_threads(),
        memory_total_bytes=psutil.virtual_memory().total,
        devices=device_names(),
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
