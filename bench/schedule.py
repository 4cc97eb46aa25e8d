"""Learning-rate schedules: the rate of each step, as transformers' schedulers of these names."""

from __future__ import annotations

import math

from bench.records import RunSpec


def rate(spec: RunSpec, step: int) -> float:
    """Return the rate of ``step``, counted from 0.

    Over ``lr_warmup_steps`` it rises linearly from 0; then it stays, or falls to 0 at the step
    after the last, linearly or along half a cosine.
    """
    warm = spec.lr_warmup_steps
    if step < warm:
        return spec.lr * step / warm
    if spec.lr_schedule == "constant":
        return spec.lr
    done = (step - warm) / max(1, spec.steps - warm)
    falling = 1.0 - done if spec.lr_schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return spec.lr * max(0.0, falling)
