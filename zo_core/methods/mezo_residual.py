"""One-point MeZO with residual feedback: one forward pass a step.

Zhang, Zhou, Ji and Zavlanos, arXiv 2006.10820, as tried in MeZO (Malladi et al., NeurIPS 2023,
arXiv 2305.17333), Table 11, where it does clearly worse, even at equal forward passes::

    l_t   = f(theta_t + eps z_t; batch_t)
    c_t   = (l_t - l_{t-1}) / eps                    0 in the first step
    theta <- theta - lr c_t z_t

The loss of the step before was seen at other weights and on another minibatch, and what that
changes is divided by eps too: unless lr ||grad|| is well below eps, each step is larger than the
one before.

Where we differ: l is rounded to float32 before the difference is formed, so that a trajectory log
brings it back.

>>> import torch
>>> from zo_core import Closure, Params, sample
>>> p = torch.tensor([1.0, -2.0, 3.0])
>>> def f(t): return (t**2).sum()
>>> params, residual = Params([("w", p)]), method(eps=0.5)
>>> state = residual.init(params)
>>> state, _ = residual.step_(params, Closure(lambda: f(p)), state, seed=6, lr=0.01)
>>> torch.allclose(p, torch.tensor([1.0, -2.0, 3.0]))  # there was nothing to compare with
True
>>> theta = p.clone()
>>> _ = residual.step_(params, Closure(lambda: f(p)), state, seed=7, lr=0.01)
>>> before, z = (sample("gaussian", s, params[0].key, 3) for s in (6, 7))
>>> c = (f(theta + 0.5 * z) - f(theta + 0.5 * before)) / 0.5
>>> torch.allclose(p, theta - 0.01 * c * z, rtol=1e-4)
True
"""

from __future__ import annotations

from zo_core import directions
from zo_core.base import Method
from zo_core.estimators.residual import Residual
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import ZerothOrder

TITLE = "MeZO, one-point residual"
PAPER = "arXiv 2305.17333, Table 11; arXiv 2006.10820"
BIAS = ""
DIFFERS = "losses rounded to float32 before they are compared"


def method(*, eps: float = 1e-3, distribution: str = "gaussian") -> Method:
    """Return MeZO with residual feedback: 1 query and 2 noise passes a step; state: one loss.

    Args:
        eps: perturbation scale; well above lr ||grad||.
        distribution: of z; any file of ``zo_core/directions``.

    """
    return ZerothOrder(Residual(eps, directions.build(distribution)), Sgd())
