"""The helper process: ``python -m bench.sampler SETTINGS PARENT``, started by ``Sampler``.

Standard input brings "mark", "late" and "stop", a line each; its end is the parent's. Standard
output says "ready" once.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time

from bench.sampler.loop import Loop, Settings

_PR_SET_PDEATHSIG = 1


def main(settings: Settings, parent: int) -> None:
    """Read until the parent says "stop", or is no more."""
    wake = _hear_of_the_end()
    loop = Loop(settings)
    try:
        print("ready", flush=True)
    except BrokenPipeError:
        sys.stdout = None  # nobody listens: nothing to flush at exit
    loop.end(_follow(loop, parent, wake))


def _follow(loop: Loop, parent: int, wake: int) -> str:
    commands = sys.stdin.fileno()
    while os.getppid() == parent:
        wait = (loop.tick() - time.monotonic_ns()) / 1e9
        heard, _, _ = select.select([commands, wake], [], [], max(0.0, wait))
        if wake in heard:
            os.read(wake, 1 << 10)
        if commands not in heard:
            continue
        said = os.read(commands, 1 << 16)
        if b"stop" in said:
            return "stopped"
        if not said:
            break
        if b"late" in said:
            loop.late()
        loop.full()
    return "the run's process ended"


def _hear_of_the_end() -> int:
    """Return what becomes readable when the parent may have ended; end of nothing else.

    The end of the pipe says it too, but not while another child of the parent holds the pipe.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    # Whoever ends a run tells its whole process group. The helper stays until the run has gone:
    # one that takes a moment to end is still being measured.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, frame: None)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    return read


if __name__ == "__main__":
    main(Settings(**json.loads(sys.argv[1])), int(sys.argv[2]))
