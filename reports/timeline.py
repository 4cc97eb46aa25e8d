"""Memory along a run as a frame: which runs are shown, and their lines, phases, limits and ends.

A trace has a row for every reading; a panel has some hundred pixels. Of each pixel the least and
the greatest reading stay, so no peak is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pandas as pd

from reports import trace
from reports.doubts import doubts, grave
from reports.load import Tables
from reports.marks import plain
from reports.run import Run
from reports.theme import rank, title_of
from reports.trace import Stretch, Trace

MOST, MOST_OTHERS = 24, 48
"""Panels of representative runs, and of the others; the files of all are in their folders."""
COLUMNS = [
    "run", "panel", "facet", "method", "key", "status", "kind", "name", "device", "depth",
    "begin_seconds", "end_seconds", "bytes",
]  # fmt: skip
"""``run`` numbers the panels. ``kind``: ``line`` (a reading), ``phase``, ``inner`` (phases of the
engine), ``peak`` (the exact one of a phase), ``baseline``, ``limit``, or ``out of memory``."""

_LINES = {
    ("host", "rss_bytes"): "resident set (host)",
    ("nvml", "device_used_bytes"): "used by all (device)",
    ("nvml", "process_used_bytes"): "this process (device)",
}
"""Source and metric of a trace -> the line it is drawn as."""
_PEAKS = {
    "host_peak_bytes": "exact peak (host)",
    "device_reserved_peak_bytes": "reserved peak (device)",
}
"""Metric of a record -> the level it is drawn as."""
DEVICE = "used by all (device)"
HOST = "resident set (host)"
_SEEN = 1.5
"""Pixels that half of the engine's phases must have for any to be drawn."""


def representatives(tables: Tables) -> list[Run]:
    """Return one run with a trace for each method and model: complete, valid, of memory first."""
    best: dict[tuple[str, str], Run] = {}
    for run in sorted(_traced(tables), key=_preference):
        best.setdefault((run.facet, run.spec.method), run)
    return sorted(best.values(), key=_order)[:MOST]


def others(tables: Tables) -> list[Run]:
    """Return the runs with a trace that `representatives` leaves out."""
    shown = {id(run) for run in representatives(tables)}
    return sorted((r for r in _traced(tables) if id(r) not in shown), key=_order)


def frame(runs: Iterable[Run], names: Iterable[str], pixels: int) -> pd.DataFrame:
    """Return what the panels of ``runs`` show, one name for each, ``pixels`` wide."""
    rows: list[dict[str, object]] = []
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        seen = trace.read(run.folder) if run.folder else None
        if seen is None:
            continue
        same = {"run": i, "panel": name, "facet": run.facet, "method": run.spec.method,
                "key": run.record.key, "status": run.record.status}  # fmt: skip
        rows += [{**same, **row} for row in _of(run, seen, pixels)]
    return pd.DataFrame(rows, columns=COLUMNS)


def short_names(runs: list[Run]) -> list[str]:
    """Return method and, where there are several, model of each."""
    several = len({run.facet for run in runs}) > 1
    return [_marked(r, title_of(r.spec.method), *([r.facet] if several else [])) for r in runs]


def long_names(runs: list[Run]) -> list[str]:
    """Return series, model where there are several, seed and kind of run of each."""
    several = len({run.facet for run in runs}) > 1
    return [
        _marked(r, plain(r.series), *([r.facet] if several else []), f"seed {r.spec.seed}",
                r.spec.measure)
        for r in runs
    ]  # fmt: skip


def _marked(run: Run, *words: str) -> str:
    symbols = [doubt.symbol for doubt in grave(doubts([run.record]))]
    return " ".join([*dict.fromkeys(symbols), ", ".join(words)])


def _traced(tables: Tables) -> list[Run]:
    return [r for r in tables.entries if r.folder and (r.folder / trace.TRACE).exists()]


def _preference(run: Run) -> tuple[object, ...]:
    record = run.record
    ended = ("completed", "out_of_memory")
    how = ended.index(record.status) if record.status in ended else len(ended)
    return how, run.is_invalid, run.spec.measure != "memory", run.spec.seed, record.key


def _order(run: Run) -> tuple[object, ...]:
    size = run.parameters if run.parameters is not None else float("inf")
    return size, run.facet, rank(run.spec.method), run.series, run.spec.seed, run.record.key


def _of(run: Run, seen: Trace, pixels: int) -> Iterator[dict[str, object]]:
    end = max(seen.end, 1e-3)
    for (source, metric), name in _LINES.items():
        rows = seen.rows[(seen.rows["source"] == source) & (seen.rows["metric"] == metric)]
        rows = rows[rows["seconds"] <= end]
        for device, line in rows.groupby("device"):
            for seconds, value in thinned(line, end / pixels):
                yield {"kind": "line", "name": name, "device": device,
                       "begin_seconds": round(seconds, 4), "bytes": round(value)}  # fmt: skip
    outer = merged([s for s in seen.stretches if s.depth == 1], end / pixels)
    yield from _phases(outer, [s for s in seen.stretches if s.depth > 1], end / pixels)
    yield from _peaks(run, [Stretch("run", 0, 0, end), *outer])
    yield from _levels(run, seen, end)


def thinned(line: pd.DataFrame, pixel: float) -> list[tuple[float, float]]:
    """Return the least and the greatest reading of each pixel (in seconds), in order of time."""
    line = line.sort_values("seconds", kind="stable").reset_index(drop=True)
    values = line.groupby((line["seconds"] // pixel).astype("int64"))["value"]
    kept = sorted({*values.idxmin(), *values.idxmax(), 0, len(line) - 1})
    return list(zip(line["seconds"][kept], line["value"][kept], strict=True))


def _phases(
    outer: list[Stretch], inner: list[Stretch], pixel: float
) -> Iterator[dict[str, object]]:
    lengths = sorted(s.end - s.begin for s in inner)
    if lengths and lengths[len(lengths) // 2] < _SEEN * pixel:
        inner = []
    for kind, several in (("phase", outer), ("inner", inner)):
        for s in several:
            yield {"kind": kind, "name": s.name, "depth": s.depth, "begin_seconds": s.begin,
                   "end_seconds": s.end}  # fmt: skip


def merged(stretches: list[Stretch], gap: float) -> list[Stretch]:
    """Return stretches, those of one name that nothing seen parts put together."""
    made: list[Stretch] = []
    for s in stretches:
        last = made[-1] if made else None
        if last and last.name == s.name and s.begin - last.end <= gap:
            made[-1] = Stretch(s.name, s.depth, last.begin, s.end)
        else:
            made.append(s)
    return made


def _peaks(run: Run, stretches: list[Stretch]) -> Iterator[dict[str, object]]:
    """Yield the exact peaks of the phases: those of the whole run where there are no others."""
    for metric, name in _PEAKS.items():
        told = [m for m in run.record.measurements if m.metric == metric and m.value is not None]
        peaks: dict[str, float] = {}
        for m in told:
            peaks[m.phase] = max(peaks.get(m.phase, 0.0), float(m.value or 0))
        if any(s.name in peaks for s in stretches if s.depth):
            peaks.pop("run", None)
        for s in stretches:
            if s.name in peaks:
                yield {"kind": "peak", "name": name, "begin_seconds": s.begin,
                       "end_seconds": s.end, "bytes": peaks[s.name]}  # fmt: skip


def _levels(run: Run, seen: Trace, end: float) -> Iterator[dict[str, object]]:
    """Yield the horizontal lines, and the mark where memory ran out."""
    base = run.peak.baseline_bytes
    on_host = run.spec.device == "cpu"
    if on_host and base is not None:
        yield {"kind": "baseline", "name": "loaded libraries", "bytes": base}
    failure = run.record.failure
    refused = run.record.status == "out_of_memory"
    limit = run.spec.memory_limit_bytes
    if limit is None and refused and failure and not on_host:
        limit = failure.bytes_limit  # the device's capacity
    if limit is not None and (base is not None or not on_host):
        level = limit + (base or 0) if on_host else limit
        yield {"kind": "limit", "name": "limit", "bytes": level}
    if refused:
        at = _refused(failure.phase if failure else None, seen, end)
        yield {"kind": "out of memory", "name": "out of memory", "begin_seconds": at.end,
               "bytes": _highest(seen, at)}  # fmt: skip


def _refused(phase: str | None, seen: Trace, end: float) -> Stretch:
    """Return the stretch that ended as memory ran out; the end of the run where that is unknown.

    The run goes on for a while: it lets go of its tensors and writes down what happened.
    """
    named = [s for s in seen.stretches if s.name == phase]
    return named[-1] if named else Stretch("run", 0, end, end)


def _highest(seen: Trace, at: Stretch) -> float | None:
    """Return the highest reading in a stretch, else the last before it, of what ran out."""
    for metric in ("device_used_bytes", "rss_bytes"):
        rows = seen.rows[(seen.rows["metric"] == metric) & (seen.rows["seconds"] <= at.end)]
        within = rows.loc[rows["seconds"] >= at.begin, "value"]
        if not rows.empty:
            return float(rows["value"].iloc[-1] if within.empty else within.max())
    return None
