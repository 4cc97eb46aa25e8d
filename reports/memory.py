"""Memory headlines as a frame: what the memory plots share."""

from __future__ import annotations

import math

import pandas as pd

from reports.configurations import Configuration, Spread, configurations, spread
from reports.headline import basis_of, refused_at
from reports.load import Tables

COLUMNS = [
    "model",
    "parameters",
    "dtype",
    "method",
    "series",
    "kind",
    "basis",
    "bytes",
    "sd_bytes",
    "runs",
    "limit_bytes",
]
"""Columns of the frame; ``limit_bytes`` is what a run was held to, or refused under."""


def peaks(tables: Tables) -> pd.DataFrame:
    """Return one row per configuration and kind.

    Kinds: ``measured``, ``predicted``, ``out of memory`` (at the limit it was refused under),
    another status (``bytes`` is NaN: it ended before there was anything to read),
    ``weights`` (once per model and dtype). ``sd_bytes`` is NaN of a single run.
    """
    rows: list[dict[str, object]] = []
    for configuration in configurations(tables):
        rows += _of(configuration)
    frame = pd.DataFrame(rows, columns=COLUMNS)
    return pd.concat([frame, _weights(tables, frame)], ignore_index=True) if rows else frame


def _of(configuration: Configuration) -> list[dict[str, object]]:
    first = configuration.first
    own = basis_of(first.spec.device)
    measured = next((r.peak.basis for r in configuration.runs if r.peak.bytes is not None), own)
    guessed = next(
        (r.predicted.basis for r in configuration.runs if r.predicted.bytes is not None), own
    )
    refused = spread(refused_at(run.record) for run in configuration.runs)
    kinds = (
        ("measured", measured, configuration.peak),
        ("predicted", guessed, configuration.predicted_peak),
        ("out of memory", own, refused),
    )
    rows = [_row(configuration, kind, basis, s) for kind, basis, s in kinds if s]
    if not configuration.completed and not refused:
        kind = configuration.status.replace("_", " ")
        rows.append(_row(configuration, kind, own, Spread(math.nan, None, 0)))
    return rows


def _row(configuration: Configuration, kind: str, basis: str, s: Spread) -> dict[str, object]:
    first = configuration.first
    return {
        "model": first.spec.model,
        "parameters": first.parameters,
        "dtype": first.spec.dtype,
        "method": first.spec.method,
        "series": first.series,
        "kind": kind,
        "basis": basis,
        "bytes": s.mean,
        "sd_bytes": s.sd,
        "runs": s.n,
        "limit_bytes": first.spec.memory_limit_bytes or _device_limit(configuration),
    }


def _device_limit(configuration: Configuration) -> int | None:
    failures = [run.record.failure for run in configuration.runs]
    return next((f.bytes_limit for f in failures if f and f.bytes_limit), None)


def _weights(tables: Tables, frame: pd.DataFrame) -> pd.DataFrame:
    """Return the weights alone, in every panel (basis) that their model stands in."""
    runs = tables.runs[["model", "parameters", "dtype", "parameter_bytes"]]
    alone = runs.dropna().drop_duplicates().rename(columns={"parameter_bytes": "bytes"})
    places = frame[["model", "dtype", "basis"]].drop_duplicates()
    rows = alone.merge(places, on=["model", "dtype"])
    return rows.assign(kind="weights", series="weights alone", method="")
