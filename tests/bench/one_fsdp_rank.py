"""One of several real ranks that train a sharded model on the CPU: prints its peaks by phase.

``python one_fsdp_rank.py RANK RANKS FILE SPEC``: FILE is where the ranks meet, SPEC a run as JSON.
"""

from __future__ import annotations

import functools
import gc
import json
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from bench.predict import against_cpu
from bench.predict.parallel_fsdp import shard
from bench.predict.trace import Request, run
from bench.records import RunSpec


def main(rank: int, ranks: int, file: str, text: str) -> None:
    """Train, and print the peaks."""
    gc.set_threshold(100, 2, 2)  # FSDP2 leaves blocks in circles: how many is a matter of luck
    spec = RunSpec.model_validate_json(text)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))

    def lay(make: Callable[[], Any]) -> Any:
        made = make()
        shard(made.module, mesh, spec.autocast)
        return made

    with patch.object(against_cpu, "run", functools.partial(run, lay=lay)):
        peaks = against_cpu.real_peaks(Request(spec, emulate="cpu"))
    dist.destroy_process_group()
    print(json.dumps(peaks))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
