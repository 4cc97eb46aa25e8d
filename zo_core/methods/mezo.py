"""MeZO (ZO-SGD): fine-tune with two forward passes and the memory of inference.

Malladi, Gao, Nichani, Damian, Lee, Chen and Arora, "Fine-tuning language models with just forward
passes", NeurIPS 2023, arXiv 2305.17333, Algorithm 1::

    c     = [f(theta + eps z) - f(theta - eps z)] / (2 eps)      one minibatch, z ~ N(0, I)
    theta <- theta - lr c z

Where we differ: (1) z comes from a counter-based stream, not from a reseeded global generator, so
data order and dropout don't hang on it; (2) moves are in place without temporaries, where the
released code allocates three of the largest tensor; (3) the way back from theta - eps z and the
update are one move by (eps - lr c) z, rounded once; (4) c is rounded to float32.

>>> import torch
>>> from zo_core import Closure, Params, sample
>>> theta = torch.tensor([1.0, -2.0, 3.0])
>>> def f(t): return (t**2).sum()
>>> p = theta.clone()
>>> params, mezo = Params([("w", p)]), method(eps=0.01)
>>> _ = mezo.step_(params, Closure(lambda: f(p)), mezo.init(params), seed=7, lr=0.1)
>>> z = sample("gaussian", 7, params[0].key, 3)
>>> c = (f(theta + 0.01 * z) - f(theta - 0.01 * z)) / (2 * 0.01)
>>> torch.allclose(p, theta - 0.1 * c * z, rtol=1e-4)
True
"""

from __future__ import annotations

from zo_core import directions
from zo_core.base import Method
from zo_core.estimators.two_point import TwoPoint
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import ZerothOrder

TITLE = "MeZO (ZO-SGD)"
PAPER = "arXiv 2305.17333, Algorithm 1"
BIAS = ""
DIFFERS = (
    "the noise stream (counter-based), moves without temporaries (the last way back is part of "
    "the update), c rounded to float32"
)


def method(*, eps: float = 1e-3, distribution: str = "gaussian") -> Method:
    """Return MeZO.

    Args:
        eps: perturbation scale; in the paper 1e-3, for LoRA 1e-2, for prefixes 1e-1.
        distribution: of z; "gaussian" as in the paper, or any file of ``zo_core/directions``.

    """
    return ZerothOrder(TwoPoint(eps, directions.build(distribution)), Sgd())
