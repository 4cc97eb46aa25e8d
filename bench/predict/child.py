"""Traces in a process of their own: ``python -m bench.predict.child FOLDER``.

A trace replaces functions of torch and transformers, and a mistake in fake tensors can abort the
interpreter: neither must reach who asks. The child sees no GPU, computes nothing and holds no
weights, so it needs the memory of the imported libraries and of the log.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.predict.log import Log
from bench.records import RunSpec, UserError

if TYPE_CHECKING:
    from bench.predict.trace import Request

_REQUEST, _LOG, _ERROR = "request.json", "log.npz", "error.json"
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
_WAIT_SECONDS = 900.0
_VERSIONS = (
    "torch", "transformers", "peft", "numpy", "numba", "tokenizers", "datasets",
)  # fmt: skip


def trace(
    request: Request, *, cache: Path | None = None, wait_seconds: float = _WAIT_SECONDS
) -> Log:
    """Trace in a child process; as ``bench.predict.trace.trace``, which says what is raised.

    Args:
        request: what to trace.
        cache: a folder of logs; one that is there already, of the same request, code and
            libraries, is taken from it, and a new one is kept in it.
        wait_seconds: after which the child is ended.

    Raises:
        UserError: as above; or the child died, or took too long.

    """
    kept = None if cache is None else cache / f"{digest(request)}.npz"
    if kept is not None and kept.exists():
        return Log.load(kept)
    with tempfile.TemporaryDirectory(prefix="zometer-trace-") as name:
        folder = Path(name)
        (folder / _REQUEST).write_text(_written(request), encoding="utf-8")
        _run(folder, wait_seconds)
        log = Log.load(folder / _LOG)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            partial = kept.with_suffix(f".{os.getpid()}")
            log.save(partial)
            partial.replace(kept)
    return log


def digest(request: Request) -> str:
    """Return 16 hexadecimal digits that stand for a request, our code and the libraries."""
    versions = [f"{name} {version(name)}" for name in _VERSIONS]
    text = "\n".join([_written(request), *versions, _code()])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _run(folder: Path, wait_seconds: float) -> None:
    command = [sys.executable, "-m", "bench.predict.child", str(folder)]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **_ENVIRONMENT},
            capture_output=True,
            text=True,
            timeout=wait_seconds,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"Tracing took longer than {wait_seconds:.0f} s. Trace fewer layers, or wait longer."
        ) from None
    if (folder / _ERROR).exists():
        raise UserError(json.loads((folder / _ERROR).read_text(encoding="utf-8")))
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise UserError(f"Tracing failed with exit code {done.returncode}: {last}", exit_code=3)


def _written(request: Request) -> str:
    fields = {**asdict(request), "spec": request.spec.model_dump(mode="json")}
    return json.dumps(fields, sort_keys=True)


def _read(text: str) -> Request:
    from bench.predict.shapes import Shape  # why here: the parent need not import torch
    from bench.predict.trace import Request

    fields: dict[str, Any] = json.loads(text)
    spec, shape = RunSpec(**fields.pop("spec")), Shape(**fields.pop("shape"))
    return Request(spec=spec, shape=shape, **fields)


def version(name: str) -> str:
    """Return the version of an installed distribution; "none" where it is not there."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"


@cache
def _code() -> str:
    """Digest what a trace runs, so that a changed method or model is traced anew."""
    import zo_core  # why here: it imports torch
    from bench.builtin import suites_folder

    bench, engine = Path(__file__).parents[1], Path(zo_core.__file__).parent
    files = [*bench.rglob("*.py"), *engine.rglob("*.py"), *suites_folder().rglob("models/*.toml")]
    total = hashlib.sha256()
    for path in sorted(files):
        total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()


def _peak_rss_bytes() -> int | None:
    """Return the peak of this process; None outside of Linux. (``ru_maxrss`` has the parent's.)"""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(x.split()[1]) for x in lines if x.startswith("VmHWM")), None)


def main(folder: Path) -> None:
    """Trace the request in ``folder`` and write the log beside it."""
    from bench.predict.trace import trace as trace_here  # why here: see _read
    from zo_core.base import Unsupported

    try:
        log = trace_here(_read((folder / _REQUEST).read_text(encoding="utf-8")))
    except (UserError, Unsupported, ValueError) as error:
        (folder / _ERROR).write_text(json.dumps(str(error)), encoding="utf-8")
        raise SystemExit(2) from error
    if (peak := _peak_rss_bytes()) is not None:
        log.facts["peak rss"] = str(peak)
    log.save(folder / _LOG)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
