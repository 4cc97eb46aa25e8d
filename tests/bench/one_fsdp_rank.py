"""One of several real ranks that train a sharded model on the CPU: prints its peaks by phase.

``python one_fsdp_rank.py RANK RANKS FOLDER SPEC``: FOLDER is where the ranks meet, SPEC a run as
JSON. Ranks tell each other their numbers through files there: gloo's threads let go of what they
sent as late as they like, which no trace of FSDP2 can know.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_api import AllGather, ReduceScatter

from bench.predict import against_cpu
from bench.predict.parallel_fsdp import shard
from bench.predict.trace import Request, run
from bench.records import RunSpec


class _Told:
    """What every rank tells the others."""

    def __init__(self, folder: Path, rank: int, ranks: int) -> None:
        self.folder, self.rank, self.ranks = folder, rank, ranks

    def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Return what FSDP2's own collectives would."""
        return torch.empty(*size, dtype=dtype, device=device)

    def all(self, mine: torch.Tensor) -> np.ndarray:
        """Return the numbers of all ranks, one row each; all must call it."""
        np.save(self.folder / f"told_{self.rank}.npy", mine.numpy())
        dist.barrier()
        told = np.stack([np.load(self.folder / f"told_{k}.npy") for k in range(self.ranks)])
        dist.barrier()
        return told


class _Gather(_Told, AllGather):
    def __call__(
        self, output_tensor: torch.Tensor, input_tensor: torch.Tensor, *_: Any, **__: Any
    ) -> None:
        output_tensor.numpy()[:] = self.all(input_tensor).reshape(-1)


class _Scatter(_Told, ReduceScatter):
    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: Any,
        **_: Any,
    ) -> None:
        assert op == dist.ReduceOp.AVG, op
        mine = np.split(self.all(input_tensor).mean(axis=0), self.ranks)[self.rank]
        output_tensor.numpy()[:] = mine


def main(rank: int, ranks: int, folder: Path, text: str) -> None:
    """Train, and print the peaks."""
    spec = RunSpec.model_validate_json(text)
    meet = f"file://{folder / 'meet'}"
    dist.init_process_group("gloo", init_method=meet, rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    told = folder, rank, ranks

    def lay(make: Callable[[], Any]) -> Any:
        made = make()
        shard(made.module, mesh, spec.autocast)
        for part in made.module.modules():
            if isinstance(part, FSDPModule):
                part.set_custom_all_gather(_Gather(*told))
                part.set_custom_reduce_scatter(_Scatter(*told))
        return made

    with patch.object(against_cpu, "run", functools.partial(run, lay=lay)):
        peaks = against_cpu.real_peaks(Request(spec, emulate="cpu"))
    dist.destroy_process_group()
    print(json.dumps(peaks))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
