"""ZO-signSGD: every weight moves by lr, in the direction of its entry's sign.

Liu, Chen, Chen and Hong, "signSGD via zeroth-order oracle", ICLR 2019, Algorithm 1; "ZO-SGD-Sign"
of ZO-Bench, arXiv 2402.11592::

    g     = c z                                  as in MeZO
    theta <- theta - lr sign(g)                  element by element

Where we differ: (1) the sign is of every entry of g; ZO-Bench's code takes that of the scalar c
and steps along z, and its sweeps run AdamW on that; (2) as for MeZO.

>>> import torch
>>> from zo_core import Closure, Params, sample
>>> theta = torch.tensor([1.0, -2.0, 3.0])
>>> def f(t): return (t**2).sum()
>>> p = theta.clone()
>>> params, zo_sign = Params([("w", p)]), method(eps=0.01)
>>> _ = zo_sign.step_(params, Closure(lambda: f(p)), zo_sign.init(params), seed=7, lr=0.1)
>>> z = sample("gaussian", 7, params[0].key, 3)
>>> c = f(theta + 0.01 * z) - f(theta - 0.01 * z)
>>> torch.allclose(p, theta - 0.1 * torch.sign(c * z))
True
"""

from __future__ import annotations

from zo_core import directions
from zo_core.base import Method
from zo_core.estimators.two_point import TwoPoint
from zo_core.updates.sign import Sign
from zo_core.zeroth_order import ZerothOrder

TITLE = "ZO-signSGD"
PAPER = "signSGD via zeroth-order oracle, ICLR 2019, Algorithm 1"
BIAS = ""
DIFFERS = "the sign of every entry; ZO-Bench's code takes that of the scalar"


def method(*, eps: float = 1e-3, distribution: str = "gaussian") -> Method:
    """Return ZO-signSGD.

    Args:
        eps: perturbation scale.
        distribution: of z; any file of ``zo_core/directions``.

    """
    return ZerothOrder(TwoPoint(eps, directions.build(distribution)), Sign())
