"""One-sided MeZO: one of the two forward passes is at theta itself.

Nesterov and Spokoiny, "Random gradient-free minimization of convex functions", FoCM 2017; offered
for language models by ZO-Bench (Zhang et al., ICML 2024, arXiv 2402.11592)::

    c     = [f(theta + eps z) - f(theta)] / eps      one minibatch, z ~ N(0, I)
    theta <- theta - lr c z

As z and -z are equally likely, the mean of c z is the gradient up to O(eps^2), as with two sides;
but a single c is off the slope along z by O(eps), so its variance grows with eps. It saves one
noise pass of three, and the loss it logs is that of theta.

Where we differ: c is rounded to float32.

>>> import torch
>>> from zo_core import Closure, Params, sample
>>> theta = torch.tensor([1.0, -2.0, 3.0])
>>> def f(t): return (t**2).sum()
>>> p = theta.clone()
>>> params, one_sided = Params([("w", p)]), method(eps=0.1)
>>> _ = one_sided.step_(params, Closure(lambda: f(p)), one_sided.init(params), seed=7, lr=0.1)
>>> z = sample("gaussian", 7, params[0].key, 3)
>>> c = (f(theta + 0.1 * z) - f(theta)) / 0.1
>>> torch.allclose(p, theta - 0.1 * c * z, rtol=1e-4)
True
"""

from __future__ import annotations

from zo_core import directions
from zo_core.base import Method
from zo_core.estimators.one_sided import OneSided
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import ZerothOrder

TITLE = "MeZO, one-sided"
PAPER = "Nesterov and Spokoiny, FoCM 2017; arXiv 2402.11592"
BIAS = ""
DIFFERS = "c rounded to float32"


def method(*, eps: float = 1e-3, distribution: str = "gaussian") -> Method:
    """Return one-sided MeZO: 2 queries and 2 noise passes a step, no state.

    Args:
        eps: perturbation scale; the error of one c is proportional to it.
        distribution: of z; any file of ``zo_core/directions``.

    """
    return ZerothOrder(OneSided(eps, directions.build(distribution)), Sgd())
