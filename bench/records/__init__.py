"""The record on disk: the one interface between measuring and drawing.

Imports the standard library and pydantic alone, so that a folder of records opens on a laptop
without torch. Every field is described in ``docs/records.md``.
"""

from bench.records.errors import UserError, unknown
from bench.records.files import RECORD, read_record, read_results, write_atomically, write_record
from bench.records.metrics import METRICS, Metric
from bench.records.record import (
    SCHEMA_VERSION,
    SEVERITIES,
    STATUSES,
    Declared,
    Environment,
    Evaluation,
    Failure,
    Flag,
    Measurement,
    ModelFacts,
    Quality,
    RunRecord,
    Status,
    Steps,
    TaskFacts,
)
from bench.records.spec import Measure, RunSpec

__all__ = [
    "METRICS",
    "RECORD",
    "SCHEMA_VERSION",
    "SEVERITIES",
    "STATUSES",
    "Declared",
    "Environment",
    "Evaluation",
    "Failure",
    "Flag",
    "Measure",
    "Measurement",
    "Metric",
    "ModelFacts",
    "Quality",
    "RunRecord",
    "RunSpec",
    "Status",
    "Steps",
    "TaskFacts",
    "UserError",
    "read_record",
    "read_results",
    "unknown",
    "write_atomically",
    "write_record",
]
