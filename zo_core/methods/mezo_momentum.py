"""MeZO with momentum (heavy ball), its buffer kept or drawn again.

Malladi et al., "Fine-tuning language models with just forward passes", NeurIPS 2023, arXiv
2305.17333, section 2.1 and appendix B.2; "ZO-SGD-MMT" of ZO-Bench, arXiv 2402.11592::

    g     = c z                                  as in MeZO
    m     <- beta m + g
    theta <- theta - lr m

Where we differ: (1) m can be replayed from the last ``window`` pairs (seed, c), which the paper
proposes and its code does not have: no memory, ``window`` noise passes, and what is older than the
window is forgotten; (2) kept, m is float32 whatever the weights; (3) as for MeZO.

>>> import torch
>>> from zo_core import Closure, Params, sample
>>> theta = torch.tensor([1.0, -2.0, 3.0])
>>> def f(t): return (t**2).sum()
>>> p = theta.clone()
>>> params, momentum = Params([("w", p)]), method(eps=0.01, beta=0.9)
>>> state, m = momentum.init(params), torch.zeros(3)
>>> for seed in (7, 8):
...     state, _ = momentum.step_(params, Closure(lambda: f(p)), state, seed=seed, lr=0.1)
...     z = sample("gaussian", seed, params[0].key, 3)
...     c = (f(theta + 0.01 * z) - f(theta - 0.01 * z)) / (2 * 0.01)
...     m = 0.9 * m + c * z
...     theta = theta - 0.1 * m
>>> torch.allclose(p, theta, rtol=1e-4)
True
"""

from __future__ import annotations

from zo_core import directions
from zo_core.base import Method, UpdateRule
from zo_core.estimators.two_point import TwoPoint
from zo_core.register import pick
from zo_core.updates.momentum import Momentum, ReplayedMomentum
from zo_core.zeroth_order import ZerothOrder

TITLE = "MeZO with momentum"
PAPER = "arXiv 2305.17333, appendix B.2"
BIAS = ""
DIFFERS = "replayed from a window of seeds, or kept in float32"
STORAGES = ("dense", "replay")


def method(
    *,
    eps: float = 1e-3,
    distribution: str = "gaussian",
    beta: float = 0.9,
    storage: str = "dense",
    window: int = 10,
) -> Method:
    """Return MeZO with momentum.

    Args:
        eps: perturbation scale.
        distribution: of z; any file of ``zo_core/directions``.
        beta: share of m that a step keeps.
        storage: "dense" keeps m, 4 bytes a weight; "replay" keeps ``window`` seeds.
        window: how many steps a replay remembers; without effect on "dense".

    """
    pick("storage", storage, STORAGES)
    rule: UpdateRule = Momentum(beta) if storage == "dense" else ReplayedMomentum(beta, window)
    return ZerothOrder(TwoPoint(eps, directions.build(distribution)), rule)
