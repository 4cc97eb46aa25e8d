"""Predictions kept on disk: one JSON file each, named by everything that decides it."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from bench.builtin import suites_folder
from bench.environment import code, version
from bench.models import catalogue
from bench.models.resolve import resolve
from bench.predict.prediction import EQUAL_LENGTHS, Prediction, of_dict
from bench.predict.trace import Request
from bench.records import UserError, write_atomically

_DATA = ("calibration.toml", "kernels.toml")
"""Files of constants that figures are made with, beside the code."""
_MADE_UP = (*EQUAL_LENGTHS, "marker")
"""Tasks that read no data."""
_OF_A_MODEL = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip


_VERSIONS = (
    "torch", "transformers", "peft", "accelerate", "numpy", "numba", "tokenizers", "datasets",
)  # fmt: skip


def folder() -> Path:
    """Return where predictions are kept; ``XDG_CACHE_HOME`` decides, else ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "zometer" / "predictions"


def keeps(request: Request) -> bool:
    """Whether a key tells all that decides a prediction: what text a task reads, none does."""
    return request.spec.task in _MADE_UP


def key_of(request: Request, how: str) -> str:
    """Return what names a prediction: spec, emulation, model, code, constants and libraries.

    Raises:
        UserError: there is no such model.

    """
    fields = {**asdict(request), "spec": request.spec.model_dump(mode="json")}
    versions = [f"{name} {version(name)}" for name in _VERSIONS]
    text = [json.dumps(fields, sort_keys=True), how, code(), *versions]
    about = hashlib.sha256("\n".join(text).encode())
    for name in _DATA:
        about.update((files("bench.predict") / name).read_bytes())
    for path in sorted(suites_folder().glob("models/*.toml")):
        about.update(path.read_bytes())
    about.update(_model(request.spec.model))
    return about.hexdigest()[:24]


def path_of(key: str) -> Path:
    """Return the file of a prediction."""
    return folder() / f"{key}.json"


def _model(name: str) -> bytes:
    """Return what decides a model that is no file of ours: configuration and tokenizer."""
    entry = catalogue.read().get(name)
    if entry is not None:
        package = entry.package
        return f"{version(package.distribution)}".encode() if package else b""
    resolve(name)  # or say that there is none
    if Path(name).is_dir():
        found = [Path(name) / file for file in _OF_A_MODEL]
    else:
        kept = [try_to_load_from_cache(name, file) for file in _OF_A_MODEL]
        found = [Path(path) for path in kept if isinstance(path, str)]
    return b"".join(p.name.encode() + p.read_bytes() for p in found if p.is_file())


def read(path: Path) -> Prediction | None:
    """Return what is kept there; None if nothing is, or it can't be understood."""
    try:
        return of_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a cache is never a reason to fail: it is made anew


def write(path: Path, prediction: Prediction) -> None:
    """Keep a prediction; where there is no room, it is simply not kept."""
    with suppress(OSError, UserError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(prediction.as_dict()) + "\n")
