"""The runs that are predicted and made, to be compared: what ``zometer bench prediction`` offers.

A variant is a product of axes, with what its runs share. Models have the widths and vocabularies
of real ones, and two blocks.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from bench.predict.shapes import Shape
from bench.predict.trace import UNTRACEABLE, Request
from bench.records import RunSpec, UserError, unknown
from bench.records.prediction_check import TRAINING, CheckCell, KnownDifference
from zo_core import methods

LAYERS = 2

_SMALL_LLAMA = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "opt": ("opt-125m", {}),
    "roberta": ("roberta-base", {}),
    "llama": ("llama-7b", _SMALL_LLAMA),
}
"""A real model of each family, and what is smaller here so that its runs fit a CPU."""

LEFT_OUT = {
    **UNTRACEABLE,
    "in_context_learning": "it is zero_shot with a longer prompt",
    "linear_probe with tunings but head": "it trains the output head alone",
    "llama with the tuning bias": "it has no bias terms",
    "roberta where an answer is written": "a masked model writes none",
    "checkpointing of zeroth-order methods": "they have no backward pass to save memory in",
    "autocast beside 16-bit weights": "it is for float32 weights",
}
"""What the grid does not have, and why."""

_BOTH = ("float32", "bfloat16")
_WHOLE = tuple(
    m for m in methods.names() if m not in (*UNTRACEABLE, "in_context_learning", "linear_probe")
)


@dataclass(frozen=True)
class Variant:
    """A product of axes, and the fields that its runs share."""

    title: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    methods: Sequence[str] = ("mezo", "ft_adamw")
    families: Sequence[str] = tuple(FAMILIES)
    dtypes: Sequence[str] = _BOTH
    attention: Sequence[str] = ("sdpa",)
    tunings: Sequence[str] = ("full",)

    def axes(self) -> dict[str, Sequence[str]]:
        """Return the values of each axis."""
        return {axis: getattr(self, axis) for axis in AXES}


AXES = ("methods", "families", "dtypes", "attention", "tunings")
_WRITING = {"task": "random_answers", "seq_len": 32}
VARIANTS = {
    TRAINING: Variant(
        "every method: two steps on random tokens", {}, _WHOLE, tunings=("full", "lora"),
        attention=("sdpa", "eager"),
    ),
    "linear_probe": Variant(
        "the output head alone, fitted", {}, ("linear_probe",), tunings=("head",),
        attention=("sdpa", "eager"),
    ),
    "adapters": Variant("tunings besides full and LoRA", {}, tunings=("bias", "prefix", "prompt")),
    "float16": Variant("float16 weights", {}, ("mezo", "ft_sgd"), dtypes=("float16",)),
    "autocast": Variant(
        "bfloat16 arithmetic, float32 weights", {"autocast": "bfloat16"}, dtypes=("float32",)
    ),
    "checkpointing": Variant(
        "activations computed again in the backward pass", {"checkpointing": True},
        ("ft_sgd", "ft_adamw"),
    ),
    "micro_batches": Variant(
        "a minibatch of 3 in passes of 1", {"batch_size": 3, "micro_batch_size": 1}
    ),
    "restore_exact": Variant(
        "weights kept aside while they are perturbed", {"options": {"restore": "exact"}},
        ("mezo",),
    ),
    "restore_batched": Variant(
        "all candidates in one pass", {"options": {"restore": "batched"}}, ("mezo", "fzoo")
    ),
    "evaluation": Variant(
        "evaluations before and after, by label words", {"task": "marker", "eval_examples": 16},
        ("zero_shot", "mezo", "ft_adamw"),
    ),
    "head": Variant(
        "classification by a linear head, evaluated",
        {"task": "marker", "objective": "head", "eval_examples": 16},
    ),
    "generation": Variant(
        "50 tokens written at evaluations: prefill and decode",
        {**_WRITING, "eval_examples": 4}, ("zero_shot", "mezo", "ft_adamw"), ("opt", "llama"),
    ),
    "score": Variant(
        "F1 of 50 written tokens is what a step minimises", {**_WRITING, "score": "f1"},
        ("mezo",), ("opt", "llama"),
    ),
}  # fmt: skip


def cells(
    asked: Mapping[str, Sequence[str]], variants: Sequence[str] | None = None
) -> list[CheckCell]:
    """Return the runs of the grid that have one of the values asked for, of each axis.

    Args:
        asked: axis -> values; an axis that is absent or empty is whole.
        variants: their names; all where absent or empty.

    Raises:
        UserError: a name is unknown, or no run is left.

    """
    for name in variants or ():
        if name not in VARIANTS:
            raise unknown("variant", name, VARIANTS)
    for axis in AXES:
        offered = {value for v in VARIANTS.values() for value in v.axes()[axis]}
        for value in asked.get(axis) or ():
            if value not in offered:
                raise _not_offered(axis, value, offered)
    found = [cell for name in variants or VARIANTS for cell in _cells(name, asked)]
    if not found:
        told = ", ".join(f"{axis} {' '.join(values)}" for axis, values in asked.items() if values)
        raise UserError(f"No run of the grid has {told} together. Leave one of them out.")
    return found


def _cells(variant: str, asked: Mapping[str, Sequence[str]]) -> Iterator[CheckCell]:
    axes = {
        axis: [value for value in values if not asked.get(axis) or value in asked[axis]]
        for axis, values in VARIANTS[variant].axes().items()
    }
    for method, family, dtype, attention, tuning in itertools.product(*axes.values()):
        if (family, tuning) == ("llama", "bias"):  # see LEFT_OUT
            continue
        yield CheckCell.model_validate(
            {
                "variant": variant,
                "method": method,
                "family": family,
                "dtype": dtype,
                "attention": attention,
                "tuning": tuning,
            }
        )


def _not_offered(axis: str, value: str, offered: set[str]) -> UserError:
    if value in LEFT_OUT:
        return UserError(f"'{value}' is not in the grid: {LEFT_OUT[value]}.")
    return unknown(f"value of --{axis}", value, offered)


def request(cell: CheckCell, config: Mapping[str, Any] | None = None, **others: Any) -> Request:
    """Return the run of a cell, two steps of a model of two blocks.

    Args:
        cell: which run.
        config: further fields of the model's configuration.
        others: further fields of its spec.

    """
    model, small = FAMILIES[cell.family]
    given: dict[str, Any] = {
        "task": "random_tokens",
        "steps": 2,
        "batch_size": 2,
        "seq_len": 64,
        "lr": 1e-6,
        "train_examples": 8,
        "anchor_examples": 4,
        **VARIANTS[cell.variant].fields,
        **others,
    }
    spec = RunSpec.model_validate(
        {
            "method": cell.method,
            "model": model,
            "dtype": cell.dtype,
            "tuning": cell.tuning,
            **given,
        }
    )
    shape = Shape(LAYERS, cell.attention, {**small, **(config or {})})
    return Request(spec, emulate="cpu", shape=shape)


def known() -> list[KnownDifference]:
    """Return the known differences, with their reasons: ``known_differences.toml``."""
    text = (files("bench.predict") / "known_differences.toml").read_text(encoding="utf-8")
    return [KnownDifference.model_validate(one) for one in tomllib.loads(text)["known"]]
