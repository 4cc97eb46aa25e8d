"""What the runs of a section have in common, and what sets them apart, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from bench.records import RunSpec
from reports import units

Fields = dict[str, str]
"""Field of a spec -> how it reads, such as ``batch_size`` -> ``batch 8``; unset ones are empty."""

_WORDS: dict[str, Callable[[RunSpec], str]] = {
    "task": lambda s: s.task,
    "prompt": lambda s: f"prompt '{s.prompt}'" if s.prompt else "",
    "objective": lambda s: f"objective {s.objective}" if s.objective else "",
    "score": lambda s: f"on {s.score}" if s.score != "cross_entropy" else "",
    "demonstrations": lambda s: units.plural(s.demonstrations, "shot") if s.demonstrations else "",
    "tuning": lambda s: f"tuning {s.tuning}",
    "lr": lambda s: f"lr {s.lr:g}",
    "lr_schedule": lambda s: f"{s.lr_schedule} lr" if s.lr_schedule != "constant" else "",
    "lr_warmup_steps": lambda s: f"lr warm-up {s.lr_warmup_steps}" if s.lr_warmup_steps else "",
    "batch_size": lambda s: f"batch {s.batch_size}",
    "micro_batch_size": lambda s: (
        f"micro-batch {s.micro_batch_size}" if s.micro_batch_size else ""
    ),
    "autocast": lambda s: f"autocast {s.autocast}" if s.autocast else "",
    "checkpointing": lambda s: "checkpointing" if s.checkpointing else "",
    "seq_len": lambda s: f"{s.seq_len} tokens",
    "steps": lambda s: units.plural(s.steps, "step"),
    "dtype": lambda s: s.dtype,
    "device": lambda s: s.device,
    "threads": lambda s: units.plural(s.threads, "thread") if s.threads else "",
    "train_examples": lambda s: f"{s.train_examples:,} training examples",
    "eval_examples": lambda s: (
        f"{s.eval_examples:,} held-back examples" if s.eval_examples else ""
    ),
    "target_accuracy": lambda s: (
        f"target {units.percent(s.target_accuracy)}" if s.target_accuracy else ""
    ),
    "memory_limit_bytes": lambda s: (
        f"limit {units.size(s.memory_limit_bytes)}" if s.memory_limit_bytes else ""
    ),
}

_ELSEWHERE = {"group", "method", "model", "seed", "measure", "time_limit_seconds"}
"""Fields that are said by other means, or that set no configuration apart."""
_QUIET = {"warmup_steps", "eval_every", "save_every", "eval_batch_size"}
"""When to look and when to save: nothing that a result depends on."""
_OF_TRAINING = ("lr", "lr_schedule", "lr_warmup_steps")


def words(spec: RunSpec, machine: str) -> Fields:
    """Return the fields that tell one configuration from another; not its method, model, seed.

    A run of no steps has no learning rate and no options worth a word.
    """
    told = {name: word(spec) for name, word in _WORDS.items()} | _unworded(spec)
    told |= _options("tuning_options", spec.tuning_options)
    if spec.steps == 0:
        return {**told, **dict.fromkeys(_OF_TRAINING, ""), "machine": machine}
    return {**told, **_options("options", spec.options), "machine": machine}


def _unworded(spec: RunSpec) -> Fields:
    """Return the fields without words of their own, where they are not at their default.

    So a field added to the spec later still tells two configurations apart.
    """
    mapped = {name for name, field in type(spec).model_fields.items() if field.default == {}}
    fields = type(spec).model_fields.keys() - _WORDS.keys() - _ELSEWHERE - _QUIET - mapped
    changed = spec.model_dump(exclude_defaults=True)
    return {
        name: f"{name.replace('_', ' ')} {_plain(changed[name])}" if name in changed else ""
        for name in sorted(fields)
    }


def _options(field: str, given: Mapping[str, object]) -> Fields:
    return {f"{field}.{k}": f"{k} {_plain(v)}" for k, v in sorted(given.items())}


def varying(several: Iterable[Fields]) -> list[str]:
    """Return the names of the fields that differ, in order of their first appearance."""
    fields = list(several)
    names = list(dict.fromkeys(name for f in fields for name in f))
    return [name for name in names if len({f.get(name, "") for f in fields}) > 1]


def describe(fields: Fields, names: Iterable[str]) -> str:
    """Return the named fields in words, those that say nothing left out."""
    return ", ".join(filter(None, (fields.get(name, "") for name in names)))


def common(several: Iterable[Fields]) -> str:
    """Return what all have in common, in words."""
    fields = list(several)
    differ = set(varying(fields))
    return describe(fields[0], [name for name in fields[0] if name not in differ])


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
