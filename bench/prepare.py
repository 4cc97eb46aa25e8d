"""Downloads and conversions, before any run: ``python -m bench.prepare KIND NAME``."""

from __future__ import annotations

import sys

from bench import models, tasks
from bench.records import UserError


def main(kind: str, name: str) -> int:
    """Prepare a model or a task; return the exit code."""
    try:
        {"model": models.prepare, "task": tasks.prepare}[kind](name)
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
