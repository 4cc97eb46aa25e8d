"""What is trained: all weights, a part of them, or an adapter. The folder is the register.

A tuning is one file here, named as it is named in suites:

    TITLE = "..."                        one line, for ``zometer list tunings``
    @dataclass(frozen=True)
    class Tuning:                        its fields are the options; each has a default
        def apply_(self, loaded, *, seed, real_ids) -> LoadedModel

``bias`` is the one to copy. What tuning files are made of is in ``bench.tuning.kit``. Whatever a
tuning does, the module is called as before, and gives outputs of the same shapes: virtual tokens
come and go inside it. Importing this package, or listing its names, does not import torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from bench.records import ModelFacts, UserError, unknown

if TYPE_CHECKING:
    from bench.models import LoadedModel
    from bench.records.spec import Option

__all__ = ["Tuning", "apply_", "build", "names"]


class Tuning(Protocol):
    """One way to choose what is trained, with its options."""

    def apply_(
        self, loaded: LoadedModel, *, seed: int, real_ids: Sequence[Sequence[int]]
    ) -> LoadedModel:
        """Change ``loaded.module`` so that exactly what is trained requires a gradient.

        Raises:
            UserError: it does not suit the model.

        """


def names() -> dict[str, str]:
    """Return name and one-line title of every tuning."""
    return {name: importlib.import_module(f"{__name__}.{name}").TITLE for name in _known()}


def build(name: str, options: Mapping[str, Option]) -> Tuning:
    """Return a tuning by name; needs no model, so a suite can be checked with it.

    Raises:
        UserError: no such tuning, no such option, or an option of the wrong type or value; the
            message names the nearest one.

    """
    from zo_core import register  # why here: it imports torch

    if name not in _known():
        raise unknown("tuning", name, _known())
    factory = importlib.import_module(f"{__name__}.{name}").Tuning
    try:
        tuning: Tuning = register.call(f"tuning '{name}'", factory, dict(options))
    except ValueError as error:
        raise UserError(str(error)) from error
    return tuning


def apply_(
    loaded: LoadedModel,
    name: str,
    options: Mapping[str, Option],
    *,
    seed: int,
    real_ids: Sequence[Sequence[int]] = (),
) -> LoadedModel:
    """Choose what is trained: afterwards exactly that requires a gradient.

    Adapters are made on the device and in the dtype of the weights. Works on "meta" and under
    FakeTensorMode too. Call it once a model.

    Args:
        loaded: the model; its module is changed in place.
        name: a file of this folder.
        options: its settings.
        seed: of random adapters; nothing else decides them, and global random streams are left as
            they were.
        real_ids: token ids of real text, unpadded, from which virtual tokens start; ids drawn
            from the seed where absent.

    Returns:
        The model as a task takes it: facts count the adapters, and ``context`` is shorter by
        virtual tokens.

    Raises:
        UserError: as ``build``; or it does not suit the model. Adapters need the package peft.

    """
    from zo_core import derive_seed  # why here: it imports torch

    tuning = build(name, options)
    tuned = tuning.apply_(loaded, seed=derive_seed(seed, "tuning"), real_ids=real_ids)
    tuned.module.eval()
    return replace(tuned, facts=_counted(tuned))


def _counted(loaded: LoadedModel) -> ModelFacts:
    parameters = list(loaded.module.parameters())
    counts = {
        "parameters": sum(p.numel() for p in parameters),
        "trained_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "parameter_bytes": sum(p.numel() * p.element_size() for p in parameters),
    }
    return loaded.facts.model_copy(update=counts)


def _known() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.ispkg)
