"""Silence of transformers while it loads, and only then."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """Let transformers print errors only, without progress bars; afterwards all is as before.

    Within another one it does nothing: changing a level makes every logger forget what it knows,
    which takes longer than tokenising a sentence.
    """
    from transformers.utils import logging as untyped  # why here: seconds to import

    logging: Any = untyped
    verbosity = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    if verbosity >= logging.ERROR and not bars:
        yield
        return
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
