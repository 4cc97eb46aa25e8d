"""Zero-shot: no training. A step is one forward pass and changes nothing.

The floor of accuracy (what the model can do as it comes) and of memory (inference).

>>> import torch
>>> from zo_core import Closure, Params
>>> p = torch.tensor([1.0, -2.0, 3.0])
>>> params, zero_shot = Params([("w", p)]), method()
>>> loss = Closure(lambda: (p**2).sum())
>>> _, info = zero_shot.step_(params, loss, zero_shot.init(params), seed=0, lr=0.1)
>>> info.losses, info.queries, p.tolist()
((14.0,), 1, [1.0, -2.0, 3.0])
"""

from __future__ import annotations

from zo_core.base import Method
from zo_core.inference import Inference

TITLE = "Zero-shot (inference)"
PAPER = "no training"
BIAS = ""
DIFFERS = ""


def method() -> Method:
    """Return the method."""
    return Inference()
