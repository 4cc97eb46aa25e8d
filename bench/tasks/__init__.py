"""Tasks: what a model is trained on and evaluated on. The folder is the register.

A task is one file here, named as it is named in suites. A classification task holds data and
prompts, and gets the rest:

    TITLE = "..."                        one line, for ``zometer list tasks``
    PROMPTS = {"it_was": Prompt(...)}    templates and label words, one word a class
    DEFAULT_PROMPT = "it_was"
    def load_examples() -> Examples      texts and labels, for training and held back

``mr`` is the one to copy. A task of another kind holds ``TITLE`` and ``build(spec, loaded)``,
which returns a ``Task``. What task files are made of is in ``bench.tasks.kit``. Importing this
package, or listing its names, does not import torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING

from bench.records import RunSpec, unknown
from bench.tasks.kit.values import Batch, Evaluated, Example, Examples, Prompt, Task

if TYPE_CHECKING:
    from bench.models import LoadedModel

__all__ = [
    "Batch",
    "Evaluated",
    "Example",
    "Examples",
    "Prompt",
    "Task",
    "build",
    "names",
    "prepare",
]


def names() -> dict[str, str]:
    """Return name and one-line title of every task."""
    return {name: _file(name).TITLE for name in _known()}


def prompts(name: str) -> list[str]:
    """Return the prompts of a task; none where it has none.

    Raises:
        UserError: no such task.

    """
    return list(getattr(_named(name), "PROMPTS", {}))


def prepare(name: str) -> None:
    """Fetch the data of a task, so that no measured run has to.

    Raises:
        UserError: no such task, or its data can't be had.

    """
    task = _named(name)
    if hasattr(task, "load_examples"):
        task.load_examples()


def build(spec: RunSpec, loaded: LoadedModel) -> Task:
    """Return the task of one run, for its model.

    Raises:
        UserError: no such task or prompt, its data can't be had, or it does not suit the model.

    """
    task = _named(spec.task)
    if hasattr(task, "build"):
        built: Task = task.build(spec, loaded)
        return built
    # Why here: it imports torch.
    from bench.tasks.kit.classification import classification

    return classification(spec, loaded, task.load_examples(), task.PROMPTS, task.DEFAULT_PROMPT)


def _known() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg)


def _named(name: str) -> ModuleType:
    if name not in _known():
        raise unknown("task", name, _known())
    return _file(name)


def _file(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
