"""What all tests may use: a scripted NVML."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

# `tests` is no package: scripted.py is imported as a module of its own.
sys.path.insert(0, str(Path(__file__).parent / "nvml"))

from scripted import ScriptedNvml

collect_ignore_glob = ["bench/heap_counter/*.py"]  # run in processes of their own


@pytest.fixture(scope="session")
def nvml_builds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of this session's compiled libraries."""
    if shutil.which("gcc") is None or sys.platform != "linux":
        pytest.skip("the scripted NVML needs gcc and Linux; install gcc")
    return tmp_path_factory.mktemp("nvml")


@pytest.fixture
def nvml(
    nvml_builds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ScriptedNvml]:
    """Plays scenarios to this process, or to one that is started."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    player = ScriptedNvml(nvml_builds, tmp_path)
    yield player
    player.restore()
