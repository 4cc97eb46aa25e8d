"""The summary as raw values: what the page shows, its spread, and what was run."""

from __future__ import annotations

import pandas as pd

from reports import stats
from reports.configurations import Configuration, configurations
from reports.doubts import SEVERITIES, doubts
from reports.load import Tables
from reports.tables.summary import COLUMNS


def summary(tables: Tables) -> pd.DataFrame:
    """Return one row per configuration of all sections: bytes, seconds, hours, fractions."""
    return pd.DataFrame([_row(c) for c in configurations(tables)])


def _row(c: Configuration) -> dict[str, object]:
    shown = {column.key: make(c).value for column, make in COLUMNS.items()}
    first = c.first.record
    return {
        "suite": first.suite,
        "group": first.spec.group,
        **shown,
        **_spreads(c),
        **_spec(c),
        **_flags(c),
        "reason": next((r.record.reason for r in c.runs if r not in c.completed), first.reason),
    }


def _flags(c: Configuration) -> dict[str, object]:
    """Return the flags of its runs, those of each severity by themselves."""
    told = doubts(c.records)
    return {
        f"flags_{severity}": "; ".join(
            f"{d.name} {d.carried}/{d.of}" for d in told if d.severity == severity
        ) or None
        for severity in SEVERITIES
    }  # fmt: skip


def _spreads(c: Configuration) -> dict[str, object]:
    seconds = c.step_seconds
    low, _, high = stats.quartiles(seconds) if seconds else (None, None, None)
    finals = [run.final for run in c.measured("time") if run.final]
    return {
        "runs": len(c.runs),
        "runs_completed": len(c.completed),
        "seeds": c.seeds,
        "peak_basis": c.first.peak.basis,
        "peak_quality": c.peak_quality,
        "predicted_basis": _predicted_basis(c),
        "peak_sd_bytes": c.peak.sd if c.peak else None,
        "absolute_peak_bytes": c.absolute_peak.mean if c.absolute_peak else None,
        "step_first_quartile_seconds": low,
        "step_third_quartile_seconds": high,
        "steps_timed": len(seconds),
        "train_seconds": c.train_seconds.mean if c.train_seconds else None,
        "accuracy_sd_fraction": c.accuracy.sd if c.accuracy else None,
        "accuracy_half_interval_fraction": c.accuracy.half_interval if c.accuracy else None,
        "accuracy_change_fraction": c.change.mean if c.change else None,
        "evaluated_examples": finals[0].n if finals else None,
        "forward_passes": finals[0].forward_passes if finals else None,
        "backward_passes": finals[0].backward_passes if finals else None,
    }


def _predicted_basis(c: Configuration) -> str | None:
    """Return what ``predicted_peak_bytes`` is of: that of the peak, or live tensors alone."""
    of_peaks = (run.predicted.basis for run in c.runs if run.predicted.bytes is not None)
    return next(of_peaks, "live tensors" if c.predicted_live else None)


def _spec(c: Configuration) -> dict[str, object]:
    spec = c.first.spec
    options = " ".join(f"{name}={value}" for name, value in sorted(spec.options.items()))
    return {
        "parameters": c.first.parameters,
        "weights_bytes": c.first.parameter_bytes,
        "task": spec.task,
        "dtype": spec.dtype,
        "device": spec.device,
        "machine": c.first.machine,
        "batch_size": spec.batch_size,
        "seq_len_tokens": spec.seq_len,
        "steps": spec.steps,
        "learning_rate": spec.lr,
        "learning_rate_schedule": spec.lr_schedule,
        "options": options,
        "objective": spec.objective,
        "score": spec.score,
        "tuning": spec.tuning,
        "tuning_options": " ".join(f"{k}={v}" for k, v in sorted(spec.tuning_options.items())),
        "memory_limit_bytes": spec.memory_limit_bytes,
    }
