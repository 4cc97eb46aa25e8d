"""Writes ``docs/records.md`` from the schema itself: ``python -m bench.records.document``."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from bench.records import monitor_cost, prediction_check, record, step_speed
from bench.records.metrics import METRICS
from bench.records.spec import RunSpec

_HEAD = f"""# The record, field by field

Made by `python -m bench.records.document > docs/records.md` from the schema (version
{record.SCHEMA_VERSION}); a test keeps it true.

A run is a folder `<results>/<suite>/<key>/`:

| file | what |
|---|---|
| `record.json` | the record below; written once, atomically, when the run has ended |
| `cell.json` | what was asked, written before the run began |
| `events.jsonl` | what happened, a line at a time: phases, steps, evaluations, measurements |
| `trajectory.bin` | the run as (seed, coefficient) scalars, see `zo_core/trajectory.py` |
| `log.txt` | everything the process printed |
| `trace.csv.gz` | what the sampler read while it ran: rows `t_ns,source,device,metric,value` |
| `sampler.json` | what the sampler found: facts, capabilities with reasons, errors |
| `snapshot.pickle` | torch's allocator, on request, for pytorch.org/memory_viz |
| `try1/record.try1.json` ... | earlier tries, where `--retry-invalid` made another |

Bytes, seconds and samples are raw; units, medians and intervals are made by `reports`. What is
missing is absent or null, never 0. A reader refuses a schema version above its own.

`zometer bench step` leaves `<out>/<key>/{step_speed.STEP_SPEED}` instead, a StepSpeed: see
docs/speed.md. `zometer bench monitor` leaves `<out>/<key>/{monitor_cost.MONITOR_COST}`, a
MonitorCost: see docs/measuring.md. `zometer bench prediction` leaves
`<out>/<key>/{prediction_check.PREDICTION_CHECK}`, a PredictionCheck: see docs/predicting.md.
"""

_MODELS: tuple[type[BaseModel], ...] = (
    record.RunRecord,
    RunSpec,
    record.Failure,
    record.Steps,
    record.Evaluation,
    record.Measurement,
    record.ModelFacts,
    record.TaskFacts,
    record.Declared,
    record.Flag,
    record.Environment,
    step_speed.StepSpeed,
    step_speed.StepCase,
    step_speed.StepTimes,
    step_speed.StepSample,
    step_speed.StepPeak,
    step_speed.PassSpeed,
    monitor_cost.MonitorCost,
    monitor_cost.MonitorCase,
    monitor_cost.WatchCost,
    monitor_cost.MonitorSample,
)


def page() -> str:
    """Return the page as Markdown."""
    parts = [_HEAD, *(_section(model) for model in _MODELS), _metrics()]
    return "\n".join(parts)


def _section(model: type[BaseModel]) -> str:
    doc = (model.__doc__ or "").strip().splitlines()[0]
    rows = [
        f"| `{name}` | {_type(field.annotation)} | {_text(field.description)} |"
        for name, field in model.model_fields.items()
    ]
    return "\n".join(
        [
            f"## {model.__name__}",
            "",
            doc,
            "",
            "| field | type | meaning |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin in (Union, UnionType):
        return " or ".join(_type(a) for a in arguments)
    if origin is Literal:
        return " or ".join(str(a) for a in arguments)
    if origin is not None:
        return f"{origin.__name__} of {', '.join(_type(a) for a in arguments)}"
    return "null" if annotation is NoneType else str(annotation.__name__)


def _text(description: str | None) -> str:
    return " ".join((description or "").replace("``", "`").split())


def _metrics() -> str:
    rows = [f"| `{n}` | {m.unit} | {_text(m.definition)} |" for n, m in METRICS.items()]
    return "\n".join(
        ["## Metrics", "", "| metric | unit | definition |", "|---|---|---|", *rows, ""]
    )


if __name__ == "__main__":
    print(page(), end="")
