"""MEAZO: ZO-SGD with one second moment for all weights, instead of Adam's one for each.

Dbouk, Gazagnadou, Reisser and Louizos, "On adaptivity in zeroth-order optimization", 2026, arXiv
2605.03869::

    c     = [f(theta + eps z) - f(theta - eps z)] / (2 eps)      z ~ N(0, I)
    v     <- beta v + (1 - beta) c^2
    theta <- theta - lr / (sqrt(v / (1 - beta^t)) + zeta) c z

Where we differ: (1) one direction a step (the paper's q = 1); (2) v is corrected by 1 - beta^t, t
from 1 on: the digest of the paper that we had prints beta^(t - 1), a division by 0 in the first
step; (3) beta and zeta are Adam's 0.999 and 1e-8, as we could not read the paper's; (4) v is
rounded to float32, to be logged; (5) weight decay has the rate lr, not lr over the root, and
``clip`` bounds c over the root; (6) as for MeZO.

>>> import torch
>>> from zo_core import Closure, Params, sample
>>> theta, v = torch.tensor([1.0, -2.0, 3.0]), 0.0
>>> def f(t): return (t**2).sum()
>>> p = theta.clone()
>>> params, meazo = Params([("w", p)]), method(eps=0.01)
>>> state = meazo.init(params)
>>> for t, seed in enumerate((7, 8), start=1):
...     state, _ = meazo.step_(params, Closure(lambda: f(p)), state, seed=seed, lr=0.1)
...     z = sample("gaussian", seed, params[0].key, 3)
...     c = (f(theta + 0.01 * z) - f(theta - 0.01 * z)) / (2 * 0.01)
...     v = 0.999 * v + 0.001 * c**2
...     theta = theta - 0.1 / ((v / (1 - 0.999**t)).sqrt() + 1e-8) * c * z
>>> torch.allclose(p, theta, rtol=1e-4)
True
"""

from __future__ import annotations

from zo_core import directions
from zo_core.base import Method
from zo_core.estimators.global_scale import GlobalScale
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import ZerothOrder

TITLE = "MEAZO (one adaptive scale)"
PAPER = "arXiv 2605.03869"
BIAS = "the gradient over the root mean square of the projected gradients"
DIFFERS = "one direction a step; v corrected by 1 - beta^t; beta and zeta as in Adam"


def method(
    *,
    eps: float = 1e-3,
    distribution: str = "gaussian",
    beta: float = 0.999,
    zeta: float = 1e-8,
) -> Method:
    """Return MEAZO.

    Args:
        eps: perturbation scale.
        distribution: of z; any file of ``zo_core/directions``.
        beta: share of v that a step keeps.
        zeta: added to the root of v.

    """
    return ZerothOrder(GlobalScale(eps, directions.build(distribution), beta, zeta), Sgd())
