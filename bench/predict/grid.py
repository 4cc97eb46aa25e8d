"""Every method, family, dtype, attention and tuning against the real step on the CPU.

``python -m bench.predict.grid`` prints a line a combination and a verdict; ``--methods``,
``--families``, ``--dtypes``, ``--attention`` and ``--tunings`` choose (comma separated). The
whole grid takes hours on two cores; every combination is a few seconds to a minute.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bench.predict.against_cpu import Comparison, compare
from bench.predict.shapes import Attention, Shape
from bench.predict.trace import UNTRACEABLE, Request
from bench.records import RunSpec
from zo_core import methods

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
"""A real model of each family that fits here when it is two blocks deep."""
AXES = {
    "methods": tuple(m for m in methods.names() if m not in (*UNTRACEABLE, "in_context_learning")),
    "families": tuple(FAMILIES),
    "dtypes": ("float32", "bfloat16"),
    "attention": ("sdpa", "eager"),
    "tunings": ("full", "lora"),
}
"""All values of each axis. ``in_context_learning`` is ``zero_shot`` with a longer prompt."""


def request(
    method: str, family: str, dtype: str, attention: Attention, tuning: str, **others: Any
) -> Request:
    """Return a run of two steps on a model of two blocks; ``others`` are fields of its spec."""
    model, config = FAMILIES[family]
    fields: dict[str, Any] = {
        "dtype": dtype,
        "task": "random_tokens",
        "steps": 2,
        "batch_size": 2,
        "seq_len": 64,
        "lr": 1e-6,
        "train_examples": 8,
        "anchor_examples": 4,
        "tuning": "head" if method == "linear_probe" else tuning,
        **others,
    }
    spec = RunSpec(method=method, model=model, **fields)
    return Request(spec, emulate="cpu", shape=Shape(2, attention, config))


def requests(axes: Mapping[str, Sequence[Any]]) -> Iterator[Request]:
    """Walk the product of the axes."""
    for combination in itertools.product(*axes.values()):
        yield request(*combination)


def line(found: Comparison) -> str:
    """Return a comparison as one line."""
    spec, shape = found.request.spec, found.request.shape
    what = f"{spec.method} {spec.model} {spec.dtype} {shape.attention} {spec.tuning}"
    phases = ", ".join(f"{phase} {error:+d}" for phase, error in found.phase_errors().items())
    verdict = "agrees" if found.agrees else "DIFFERS"
    by_phase = f" (by phase: {phases})" if phases else ""
    return f"{verdict} {what}: {found.error_bytes:+d} B of {found.peak}{by_phase}"


def main() -> int:
    """Compare what is asked for; 0 where all agree."""
    parser = argparse.ArgumentParser(prog="python -m bench.predict.grid", description=__doc__)
    for axis, values in AXES.items():
        parser.add_argument(f"--{axis}", default=",".join(values))
    asked = vars(parser.parse_args())
    axes = {axis: asked[axis].split(",") for axis in AXES}
    differ = 0
    for one in requests(axes):
        found = compare(one)
        differ += not found.agrees
        print(line(found), flush=True)
    print(f"{differ} differ")
    return 1 if differ else 0


if __name__ == "__main__":
    raise SystemExit(main())
