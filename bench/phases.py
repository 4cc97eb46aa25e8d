"""From the events of a run to the stretches of time in which its phases were open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.sampler import Window


def windows(events: Sequence[dict[str, Any]]) -> list[Window]:
    """Return every stretch a phase was open, in the newest process of a run, in order of ends.

    What was open when the process died ended, as far as anybody knows, with its last event.
    """
    begun = max((n for n, e in enumerate(events) if e["event"] == "start"), default=0)
    found: list[Window] = []
    stack: list[tuple[str, int]] = []
    last = 0
    for event in events[begun:]:
        last = event.get("t_ns", last)
        if event["event"] != "phase" or "t_ns" not in event:
            continue
        name, depth = event["name"], event["depth"]
        # A phase that is told at its own depth, while it is open, goes on: one inside it ended.
        while len(stack) > depth + 1 or (len(stack) == depth + 1 > 0 and stack[-1][0] != name):
            found.append(_closed(stack, event["t_ns"]))
        if len(stack) == depth:
            stack.append((name, event["t_ns"]))
    while stack:
        found.append(_closed(stack, last))
    return found


def _closed(stack: list[tuple[str, int]], end_ns: int) -> Window:
    name, begin_ns = stack.pop()
    return Window(name, begin_ns, end_ns, len(stack))
