"""Tasks: what a model is trained on and evaluated on. The folder is the register.

A task is one file here, named as it is named in suites. A task with texts holds data and
prompts, and gets the rest:

    TITLE = "..."                        one line, for ``zometer list tasks``
    PROMPTS = {"it_was": Prompt(...)}    templates and label words, one word a class
    DEFAULT_PROMPT = "it_was"
    def load_examples() -> Examples      texts and labels, for training and held back
    OBJECTIVES = ("options", ...)        the first is the default; absent: all of classification
    HEAD = ("text", "hypothesis")        what a classification head reads; absent: the text

``mr`` is the one to copy for classification, ``copa`` for multiple choice, ``squad`` where the
model writes. A task of another kind holds ``TITLE``, ``OBJECTIVES`` and ``build(spec, loaded)``,
which returns a ``Task`` (and ``CLASSES``, if it offers ``head``). What task files are made of is
in ``bench.tasks.kit``. Importing this package, or listing its names, does not import torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType
from typing import TYPE_CHECKING

from bench.records import RunSpec, unknown
from bench.records.spec import Objective
from bench.tasks.kit.values import (
    Batch,
    Evaluated,
    Example,
    Examples,
    Prompt,
    Task,
    TaskFile,
)

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
    "head_classes",
    "names",
    "objectives",
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


def objectives(name: str) -> list[Objective]:
    """Return the objectives that a task offers, its default first; none where it has one loss.

    Raises:
        UserError: no such task.

    """
    from bench.tasks.kit.objective import CLASSIFICATION

    return list(getattr(_named(name), "OBJECTIVES", CLASSIFICATION))


def head_classes(spec: RunSpec) -> int | None:
    """Return how many classes the model's head must have: for ``models.load``, before ``build``.

    None where the run wants no head.

    Raises:
        UserError: no such task, or it does not offer the objective ``head``.

    """
    if spec.objective != "head":
        return None
    from bench.tasks.kit.objective import refuse_unoffered

    refuse_unoffered(spec, objectives(spec.task))
    task = _named(spec.task)
    if hasattr(task, "CLASSES"):
        return int(task.CLASSES)
    return len(task.PROMPTS[task.DEFAULT_PROMPT].words)


def prepare(name: str) -> None:
    """Fetch the data of a task, so that no measured run has to.

    Raises:
        UserError: no such task, or its data can't be had.

    """
    task = _named(name)
    if hasattr(task, "load_examples"):
        task.load_examples()


def build(spec: RunSpec, loaded: LoadedModel) -> Task:
    """Return the task of one run, for its model (loaded with ``head_classes(spec)``).

    Raises:
        UserError: no such task, prompt or objective, its data can't be had, or it does not suit
            the model.

    """
    task = _named(spec.task)
    if hasattr(task, "build"):
        built: Task = task.build(spec, loaded)
        return built
    # Why here: it imports torch.
    from bench.tasks.kit.text import text_task

    head = getattr(task, "HEAD", ("text",))
    file = TaskFile(task.PROMPTS, task.DEFAULT_PROMPT, objectives(spec.task), head)
    return text_task(spec, loaded, file, task.load_examples())


def _known() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg)


def _named(name: str) -> ModuleType:
    if name not in _known():
        raise unknown("task", name, _known())
    return _file(name)


def _file(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")
