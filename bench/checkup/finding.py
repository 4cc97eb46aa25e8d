"""One thing that was looked at, as the doctor tells it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

State = Literal["exact", "sampled", "ok", "note", "unavailable"]


class Finding(BaseModel):
    """One thing looked at."""

    what: str
    state: State
    detail: str
