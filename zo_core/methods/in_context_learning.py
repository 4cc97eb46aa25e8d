"""In-context learning: no training; solved examples stand in the prompt.

Brown et al., "Language models are few-shot learners", NeurIPS 2020, arXiv 2005.14165, section 2;
a baseline of the MeZO paper (arXiv 2305.17333), with 32 demonstrations. A step is one forward pass
on the longer prompts and changes nothing; what it costs beside zero-shot is their length.

The demonstrations are the caller's to put there (in the harness, ``demonstrations = 32``): the
engine sees the objective alone, and this is ``zero_shot`` under the name of what is asked.

>>> import torch
>>> from zo_core import Closure, Params
>>> p = torch.tensor([1.0, -2.0, 3.0])
>>> params, shown = Params([("w", p)]), method()
>>> loss = Closure(lambda: (p**2).sum())
>>> _, info = shown.step_(params, loss, shown.init(params), seed=0, lr=0.1)
>>> info.losses, info.queries, p.tolist()
((14.0,), 1, [1.0, -2.0, 3.0])
"""

from __future__ import annotations

from zo_core.base import Method
from zo_core.inference import Inference

TITLE = "In-context learning"
PAPER = "arXiv 2005.14165"
BIAS = ""
DIFFERS = ""


def method() -> Method:
    """Return the method."""
    return Inference()
