"""What is installed is this repository, data lands where it is looked for, imports do nothing."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("zo_core", "bench", "reports")


def run(*arguments: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", PACKAGES)
def test_the_packages_come_from_this_repository(name):
    assert Path(importlib.util.find_spec(name).origin).parent == ROOT / name


def test_suites_hold_no_python_and_tests_are_no_package():
    assert not list((ROOT / "suites").rglob("*.py"))
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_the_data_files_of_the_wheel_are_the_suites():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    files = project["tool"]["setuptools"]["data-files"]
    patterns = [p for group in files.values() for p in group]
    shipped = {f for p in patterns for f in ROOT.glob(p)}
    assert shipped == set((ROOT / "suites").rglob("*.toml"))
    for target, (pattern,) in files.items():
        assert target == "share/zometer/" + Path(pattern).parent.as_posix()


_WATCH = """
import importlib, logging, os, pkgutil, random, sys
import rich.style  # draws from `random` when it is imported; that is rich's doing, not ours
import peft  # where triton is, torch names a cache in the environment: peft's and torch's doing
def look():
    import torch
    return (dict(os.environ), torch.get_rng_state().tolist(), torch.get_num_threads(),
            torch.get_default_dtype(), random.getstate(), logging.root.level,
            list(logging.root.handlers), torch.cuda.is_initialized())
before = look()
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
assert look() == before
"""


def test_importing_every_module_has_no_effect():
    run("-c", _WATCH, *PACKAGES)


@pytest.mark.parametrize("name", ["bench.records", "bench.models", "bench.tasks", "reports.main"])
def test_what_must_be_light_does_not_import_torch(name):
    run("-c", f"import sys, {name}; assert 'torch' not in sys.modules")
