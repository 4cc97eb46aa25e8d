"""A run traced in a process of its own, and written down as one of torch's memory snapshots.

What is written is what figures are made of: the log of two steps with cuBLAS's workspace and the
kernels' own temporaries, put through the allocator. Its peak is the predicted reserved memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.predict import calibration, pool, snapshot
from bench.predict.allocator import OutOfMemory, Settings
from bench.predict.fits import gib
from bench.predict.gpus import Gpu
from bench.predict.predict import SECONDS, Job, begin, error_of, lost, request_of, traced
from bench.records import RunSpec, UserError


@dataclass(frozen=True)
class Wanted:
    """A snapshot to be made."""

    job: Job
    settings: Settings
    workspace: int
    path: Path


@dataclass(frozen=True)
class Written:
    """A snapshot that was made; bytes."""

    events: int
    requested_peak: int
    reserved_peak: int


def write(spec: RunSpec, path: Path, gpu: Gpu | None = None, expandable: bool = False) -> Written:
    """Trace a run as on CUDA, all layers of it, and write its snapshot.

    Args:
        spec: the run; its device says nothing.
        path: the file.
        gpu: whose workspace is taken, and whose memory is the limit; none: a usual workspace, and
            no limit.
        expandable: replay with expandable segments.

    Raises:
        UserError: the run can't be traced, does not fit the GPU, or the file can't be written.

    """
    constants = calibration.read()
    capacity = None if gpu is None else gpu.usable - constants.context.expected
    wanted = Wanted(
        Job(request_of(spec, "cuda"), full=True),
        Settings(expandable=expandable, capacity=capacity),
        constants.workspace_of(gpu.architecture if gpu else None),
        path,
    )
    how = pool.How(_outcome, begin, _lost)
    (found,) = pool.results(how, [wanted], workers=1, seconds=SECONDS)
    if isinstance(found, UserError):
        raise found
    return found


def _outcome(wanted: Wanted) -> Written | UserError:
    """Trace and write, in a process of its own."""
    spec = wanted.job.request.spec
    try:
        log, _ = traced(wanted.job.request)
        made = snapshot.export(log, wanted.settings, wanted.workspace)
        snapshot.save(made, wanted.path)
    except OutOfMemory as error:
        return UserError(
            f"Method '{spec.method}' on '{spec.model}' does not fit: {gib(error.asked)} asked for "
            f"where {gib(error.allocated)} are allocated and {gib(error.reserved)} reserved. Name "
            "a larger --device, try --expandable, or leave --device out."
        )
    except Exception as error:  # why: what fake tensors can't do fails in many ways
        return error_of(spec, error)
    end = sum(segment["total_size"] for segment in made["segments"])
    trace = made["device_traces"][0]
    asked = snapshot.to_log(made).live_peak()
    return Written(len(trace), asked, snapshot.peak_reserved(trace, end)[0])


def _lost(wanted: Wanted, why: pool.Why) -> Written | UserError:
    told = lost(wanted.job, why)
    assert isinstance(told, UserError)
    return told
