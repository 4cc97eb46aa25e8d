"""Traces runs over two devices by FSDP, in this process: ``python sharded_traces.py FOLDER RUNS``.

RUNS is JSON, name -> [emulated device, run]. Each becomes FOLDER/name.npz; name.txt: why not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bench.predict.parallel import Parallel
from bench.predict.trace import Request, trace
from bench.records import RunSpec, UserError


def main(folder: Path, text: str) -> None:
    """Trace them."""
    for name, (emulate, one) in json.loads(text).items():
        run = Request(RunSpec(**one), emulate=emulate, parallel=Parallel("fsdp", 2))
        try:
            trace(run).save(folder / f"{name}.npz")
        except UserError as error:
            (folder / f"{name}.txt").write_text(str(error), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
