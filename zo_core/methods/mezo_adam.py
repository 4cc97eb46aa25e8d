"""MeZO with Adam (ZO-Adam); with its moments replayed from seeds, AdaMeZO.

Malladi et al., NeurIPS 2023, arXiv 2305.17333, appendix B.2; ZO-Adam of ZO-Bench, arXiv
2402.11592; replayed: Cai, Chen and Zhu, "AdaMeZO", ICML 2026, arXiv 2605.00650::

    g     = c z                                  as in MeZO
    m     <- beta1 m + (1 - beta1) g             v <- beta2 v + (1 - beta2) g^2
    theta <- theta - lr mhat / (sqrt(vhat) + adam_eps)

Where we differ: (1) the moments are float32 whatever the weights, where ZO-Bench keeps them in
float16, in which 1e-8 is 0; (2) replayed, they are divided by the weight of the window, so that
they are means of it, and adam_eps stands outside the root as in Adam: AdaMeZO does neither, and
its rates are several times smaller for equal steps; (3) weight decay (a setting of every method)
is decoupled, as in AdamW; (4) as for MeZO.

>>> import torch
>>> from zo_core import Closure, Params, sample
>>> theta, m, v = torch.tensor([1.0, -2.0, 3.0]), torch.zeros(3), torch.zeros(3)
>>> def f(t): return (t**2).sum()
>>> p = theta.clone()
>>> params, adam = Params([("w", p)]), method(eps=0.01)
>>> state = adam.init(params)
>>> for t, seed in enumerate((7, 8), start=1):
...     state, _ = adam.step_(params, Closure(lambda: f(p)), state, seed=seed, lr=0.1)
...     z = sample("gaussian", seed, params[0].key, 3)
...     g = (f(theta + 0.01 * z) - f(theta - 0.01 * z)) / (2 * 0.01) * z
...     m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
...     mhat, vhat = m / (1 - 0.9**t), v / (1 - 0.999**t)
...     theta = theta - 0.1 * mhat / (vhat.sqrt() + 1e-8)
>>> torch.allclose(p, theta, rtol=1e-4)
True
"""

from __future__ import annotations

from zo_core import directions
from zo_core.base import Method, UpdateRule
from zo_core.estimators.two_point import TwoPoint
from zo_core.register import pick
from zo_core.updates.adam import Adam, ReplayedAdam
from zo_core.zeroth_order import ZerothOrder

TITLE = "MeZO with Adam (ZO-Adam, AdaMeZO)"
PAPER = "arXiv 2305.17333, appendix B.2; arXiv 2605.00650"
BIAS = ""
DIFFERS = "moments in float32; replayed ones are means of their window"
STORAGES = ("dense", "replay")


def method(
    *,
    eps: float = 1e-3,
    distribution: str = "gaussian",
    beta1: float = 0.9,
    beta2: float = 0.999,
    adam_eps: float = 1e-8,
    storage: str = "dense",
    window: int = 10,
) -> Method:
    """Return MeZO with Adam.

    Args:
        eps: perturbation scale.
        distribution: of z; any file of ``zo_core/directions``.
        beta1: share of m that a step keeps.
        beta2: share of v that a step keeps.
        adam_eps: added to the root of v.
        storage: "dense" keeps m and v, 8 bytes a weight; "replay" keeps ``window`` seeds.
        window: how many steps a replay remembers; without effect on "dense".

    """
    pick("storage", storage, STORAGES)
    decays = (beta1, beta2, adam_eps)
    rule: UpdateRule = Adam(*decays) if storage == "dense" else ReplayedAdam(*decays, window)
    return ZerothOrder(TwoPoint(eps, directions.build(distribution)), rule)
