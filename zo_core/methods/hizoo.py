"""HiZOO: steps scaled by an estimate of the Hessian's diagonal, from a third forward pass.

Zhao, Dang, Ye, Dai, Qian and Tsang, "Second-order fine-tuning without pain for LLMs: a Hessian
informed zeroth-order optimizer", ICLR 2025, arXiv 2402.15173, Algorithm 1, with h = Sigma^-1::

    l0, l+, l- = f at theta, theta + eps u / sqrt(h), theta - eps u / sqrt(h)      u ~ N(0, I)
    h     <- (1 - alpha) h + alpha h u^2 |l+ + l- - 2 l0| / (2 eps^2)
    theta <- theta - lr [(l+ - l-) / (2 eps)] u / sqrt(h)                          the new h

Where we differ: (1) h is float32 whatever the weights: in 16 bits h would never change, with
alpha = 1e-8. In float32 a relative change below 3e-8 to 6e-8 is lost as well, so at that default h
only grows: a fall (by alpha at most) never shows, a rise where u^2 |...| / (2 eps^2) is above 4 to
7; from smoothing = 1e-6 on h goes both ways; (2) the released code for large models perturbs and
steps along u *times* sqrt(h), with h learned as above but for h u^2, which is u^2 / h there, so
that steep directions get longer steps; the paper divides, and so do we; (3) alpha is constant, as
in the authors' scripts (their code has schedules).

>>> import torch
>>> from zo_core import Closure, Params, sample
>>> theta, h = torch.tensor([1.0, -2.0, 3.0]), torch.ones(3)
>>> def f(t): return (t**2).sum()
>>> p = theta.clone()
>>> params, hizoo = Params([("w", p)]), method(eps=0.1, smoothing=0.3)
>>> state = hizoo.init(params)
>>> for seed in (7, 8):
...     state, _ = hizoo.step_(params, Closure(lambda: f(p)), state, seed=seed, lr=0.1)
...     u = sample("gaussian", seed, params[0].key, 3)
...     plus, minus = f(theta + 0.1 * u / h.sqrt()), f(theta - 0.1 * u / h.sqrt())
...     bent = (plus + minus - 2 * f(theta)).abs() / (2 * 0.1**2)
...     h = 0.7 * h + 0.3 * h * u**2 * bent
...     theta = theta - 0.1 * (plus - minus) / (2 * 0.1) * u / h.sqrt()
>>> torch.allclose(p, theta, rtol=1e-3)
True
"""

from __future__ import annotations

from zo_core import directions
from zo_core.base import Method
from zo_core.estimators.hessian_informed import HessianInformed
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import ZerothOrder

TITLE = "HiZOO (Hessian-informed)"
PAPER = "arXiv 2402.15173, Algorithm 1"
BIAS = "the gradient divided by the learned diagonal h of the Hessian"
DIFFERS = "h in float32; divides by sqrt(h), where the released large-model code multiplies"


def method(
    *, eps: float = 1e-3, distribution: str = "gaussian", smoothing: float = 1e-8
) -> Method:
    """Return HiZOO.

    Args:
        eps: perturbation scale.
        distribution: of u; "gaussian" as in the paper, or any file of ``zo_core/directions``.
        smoothing: alpha, the share of h that is new in every step.

    """
    return ZerothOrder(HessianInformed(eps, directions.build(distribution), smoothing), Sgd())
