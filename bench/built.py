"""Model, task and method of one run, put together: the same for a live run and for a replay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bench import models, tasks, tuning
from bench.models import LoadedModel
from bench.records import ModelFacts, RunSpec, UserError
from bench.tasks import Task
from zo_core import Method, Params, methods

_DERIVATIVES = ("forward_gradient",)
"""Methods without a backward pass that need a derivative all the same."""


@dataclass(frozen=True)
class Built:
    """What a run works on."""

    module: Any
    """The model, with its adapters or head; what is trained requires a gradient."""
    tokenizer: Any
    facts: ModelFacts
    task: Task
    method: Method
    params: Params


def build(spec: RunSpec) -> Built:
    """Build model, task and method.

    Raises:
        UserError: something in the spec is unknown, or does not go together.

    """
    method = methods.build(spec.method, **spec.options)
    agree(spec, method)
    loaded = models.load(
        spec.model,
        dtype=spec.dtype,
        device=spec.device,
        seed=spec.seed,
        head_classes=tasks.head_classes(spec),
    )
    loaded = _tuned(spec, loaded)
    task = tasks.build(spec, loaded)
    if spec.checkpointing:
        _checkpoint_activations(loaded.module)
    params = Params.of(loaded.module)
    trained: dict[str, Any] = {"trained_parameters": params.elements}
    if spec.tuning != "full":
        trained["trained_tensors"] = [p.name for p in params]
    facts = loaded.facts.model_copy(update=trained)
    return Built(loaded.module, loaded.tokenizer, facts, task, method, params)


def agree(spec: RunSpec, method: Method) -> None:
    """Refuse what does not go together.

    Raises:
        UserError: with what to change.

    """
    if spec.score != "cross_entropy" and (method.needs_gradient or spec.method in _DERIVATIVES):
        raise UserError(
            f"score = '{spec.score}' has no gradient, so '{spec.method}' can't minimise it. Take "
            "a zeroth-order method such as 'mezo', or score = 'cross_entropy'."
        )
    if spec.checkpointing and (not method.needs_gradient or spec.tuning == "prefix"):
        why = "a prefix is dropped by it" if method.needs_gradient else "there is no backward pass"
        raise UserError(f"checkpointing does not go with this run: {why}. Leave it out.")
    if spec.autocast and spec.dtype != "float32":
        raise UserError(
            f"autocast = '{spec.autocast}' is for float32 weights, got dtype = '{spec.dtype}'. "
            "Leave one of them out."
        )
    if spec.method == "in_context_learning" and not spec.demonstrations:
        raise UserError("'in_context_learning' shows examples: set demonstrations to 1 or more.")
    if spec.method == "linear_probe" and spec.tuning != "head":
        raise UserError("'linear_probe' trains the output head alone: set tuning = 'head'.")


def _tuned(spec: RunSpec, loaded: LoadedModel) -> LoadedModel:
    """Choose what is trained; some of it starts from the activations of real training text."""
    if spec.tuning == "full":
        return loaded
    ids = _real_ids(tasks.build(spec, loaded))
    return tuning.apply_(loaded, spec.tuning, spec.tuning_options, seed=spec.seed, real_ids=ids)


def _checkpoint_activations(module: Any) -> None:
    """Turn it on in the model of transformers inside ``module``; its head needs none."""
    for name in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):  # new, old
        for one in module.modules():
            if hasattr(one, name):
                getattr(one, name)({"use_reentrant": False})
                return
    raise UserError("checkpointing is not offered by this model. Leave it out.")


def _real_ids(task: Task) -> list[list[int]]:
    """Return the token ids of the first training texts."""
    batch = task.batch(0)
    ids = batch.input_ids
    seen = ids >= 0 if batch.attention_mask is None else batch.attention_mask.bool()
    return [row[keep].tolist() for row, keep in zip(ids.unbind(), seen.unbind(), strict=True)]
