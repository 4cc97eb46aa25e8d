"""What the runs of a section have in common, and what sets them apart, in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from bench.records import RunSpec
from reports import units

Fields = dict[str, str]
"""Field of a spec -> how it reads, such as ``batch_size`` -> ``batch 8``; unset ones are empty."""

_WORDS: dict[str, Callable[[RunSpec], str]] = {
    "task": lambda s: s.task,
    "prompt": lambda s: f"prompt '{s.prompt}'" if s.prompt else "",
    "lr": lambda s: f"lr {s.lr:g}",
    "batch_size": lambda s: f"batch {s.batch_size}",
    "seq_len": lambda s: f"{s.seq_len} tokens",
    "steps": lambda s: units.plural(s.steps, "step"),
    "dtype": lambda s: s.dtype,
    "device": lambda s: s.device,
    "threads": lambda s: units.plural(s.threads, "thread") if s.threads else "",
    "train_examples": lambda s: f"{s.train_examples:,} training examples",
    "eval_examples": lambda s: (
        f"{s.eval_examples:,} held-back examples" if s.eval_examples else ""
    ),
    "memory_limit_bytes": lambda s: (
        f"limit {units.size(s.memory_limit_bytes)}" if s.memory_limit_bytes else ""
    ),
}


def words(spec: RunSpec, machine: str) -> Fields:
    """Return the fields that tell one configuration from another; not its method, model, seed.

    A run of no steps has no learning rate and no options worth a word.
    """
    told = {name: word(spec) for name, word in _WORDS.items()}
    if spec.steps == 0:
        told["lr"] = ""
        return {**told, "machine": machine}
    options = {f"options.{k}": f"{k} {_plain(v)}" for k, v in sorted(spec.options.items())}
    return {**told, **options, "machine": machine}


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
