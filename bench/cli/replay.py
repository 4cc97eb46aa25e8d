"""``zometer replay``: a run's final weights from its trajectory, checked and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from bench import replay as rebuild
from bench.records import UserError


def replay(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of one run: results/<suite>/<run key>.")
    ],
    export: Annotated[
        Path | None, typer.Option(help="Write the weights here, as a safetensors checkpoint.")
    ] = None,
    fast: Annotated[
        bool,
        typer.Option("--fast", help="Updates alone: leaves out the drift of the perturbations."),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; where the run was made if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line.")] = False,
) -> None:
    """Rebuild a run's weights from the initial ones and its log, without a forward pass.

    Exits with 1 where they are not the live run's to the bit (not checked with --fast).
    """
    if export is not None and export.exists() and not (export.is_dir() and _empty(export)):
        raise UserError(f"{export} is there already. Choose a new folder for the checkpoint.")
    done = rebuild.replay(run, retrace=not fast, device=device)
    files = rebuild.export(done, export) if export is not None else []
    equal = None if fast else done.equal
    if as_json:
        told = {"steps": done.steps, "digest": done.digest, "live_digest": done.live_digest}
        print(json.dumps({**told, "equal": equal, "differs": done.differs, "files": files}))
    else:
        print(f"Replayed {done.steps} steps: weights {done.digest}. {_verdict(equal, fast)}")
        if equal is False and done.differs:
            print(f"Not as it was where the run was made: {', '.join(done.differs)}.")
        if export is not None:
            print(f"Written to {export.resolve()}: {', '.join(files)}")
    if equal is False:
        raise typer.Exit(1)


def _empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def _verdict(equal: bool | None, fast: bool) -> str:
    if fast:
        return "Not compared: --fast leaves out the drift of the live run's perturbations."
    if equal is None:
        return "The live run did not get to its end, so there is nothing to compare with."
    return "Equal to the live run's, bit for bit." if equal else "NOT the live run's weights."
