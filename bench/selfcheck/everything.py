"""All checks, one after another."""

from __future__ import annotations

from collections.abc import Iterator

from bench.selfcheck import cpu, gpu, sampling
from bench.selfcheck.verdict import Verdict


def verdicts() -> Iterator[Verdict]:
    """Check every meter of this machine; a verdict as soon as it is there."""
    yield from cpu.verdicts()
    yield from sampling.verdicts()
    yield from sampling.packages()
    yield from gpu.verdicts()
