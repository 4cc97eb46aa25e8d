"""The last W estimates, as seeds and scalars: what a moving average is made of again.

An average of estimates is a short sum of seeded noise, so it need not be kept as a tensor: a few
numbers are kept, and the noise is drawn again (MeZO, arXiv 2305.17333, appendix B.2).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from zo_core.base import Distribution, GradientEstimate, Term, scaled


@dataclass(frozen=True)
class Past:
    """One past gradient ``g = sum_k c_k u(seed_k)``."""

    distribution: Distribution
    terms: tuple[Term, ...]


Window = tuple[Past, ...]
"""The newest first."""


def remembered(window: Window, estimate: GradientEstimate, size: int) -> Window:
    """Put ``estimate`` in front, and forget what is older than ``size`` steps."""
    return (Past(estimate.distribution, estimate.terms), *window[: size - 1])


def decayed(window: Window, beta: float) -> list[Past]:
    """Return ``sum_j beta^j g_{t-j}``, as one sum of terms for each run of one distribution."""
    aged = ((past, beta**age) for age, past in enumerate(window))
    groups = itertools.groupby(aged, lambda one: one[0].distribution)
    return [
        Past(distribution, tuple(t for past, w in group for t in scaled(past.terms, w)))
        for distribution, group in groups
    ]


def check_window(window: int) -> None:
    """Refuse a window that holds nothing."""
    if window < 1:
        raise ValueError(f"window must be 1 step or more, got {window}.")


def check_rates(**betas: float) -> None:
    """Refuse a decay that is not one."""
    for name, beta in betas.items():
        if not 0 <= beta < 1:
            raise ValueError(f"{name} must be in [0, 1), got {beta}.")


def mean_weight(beta: float, steps: int) -> float:
    """Return ``(1 - beta) sum_{j < steps} beta^j``: what an average of ones comes to."""
    return 1 - beta**steps
