"""R-MeZO: move random entries, whatever their magnitude; the ablation of Sparse-MeZO.

Liu, Zhu, Gong, Cheng, Hsieh and You, arXiv 2402.15751 ("R-MeZO"). With
m a coin for each entry that shows 1 with probability p = ``trained_fraction``::

    c     = [f(theta + eps m z) - f(theta - eps m z)] / (2 eps)
    theta <- theta - lr c m z

The mask is drawn again from a seed wherever it is used: it needs no memory, and one uniform number
an entry beside the direction's in every pass, which a count of noise passes (of directions) omits.

Where we differ: (1) masks by replay, where others hold one in the dtype of the weights; (2) the
paper does not say when its mask is drawn: ``resample`` has both.

>>> import torch
>>> from zo_core import Closure, Params, derive_seed, sample
>>> theta = torch.tensor([1.0, -2.0, 3.0, -0.5])
>>> def f(t): return ((t - 1) ** 4).sum()
>>> p = theta.clone()
>>> params, masked = Params([("w", p)]), method(eps=0.01, trained_fraction=0.5)
>>> _ = masked.step_(params, Closure(lambda: f(p)), masked.init(params), seed=7, lr=0.01)
>>> key = params[0].key
>>> m = sample("uniform", derive_seed(7, "mask"), key, 4) < 0.5
>>> mz = m * sample("gaussian", 7, key, 4)
>>> c = (f(theta + 0.01 * mz) - f(theta - 0.01 * mz)) / (2 * 0.01)
>>> torch.allclose(p, theta - 0.01 * c * mz, rtol=1e-4)
True
"""

from __future__ import annotations

from zo_core import directions
from zo_core.base import Method
from zo_core.estimators.random_entries import Coins
from zo_core.estimators.restricted import Restricted
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import ZerothOrder

TITLE = "R-MeZO (random mask)"
PAPER = "arXiv 2402.15751, the ablation R-MeZO"
BIAS = "p times the gradient (a mask a step), or the gradient under the mask (one mask for all)"
DIFFERS = "the mask is drawn again from its seed and never stored"


def method(
    *,
    eps: float = 1e-3,
    trained_fraction: float = 0.25,
    resample: bool = True,
    distribution: str = "gaussian",
) -> Method:
    """Return R-MeZO.

    Args:
        eps: perturbation scale.
        trained_fraction: the probability of each entry to be moved.
        resample: a mask a step; else the run's first step decides it for all.
        distribution: of z; "gaussian", or any file of ``zo_core/directions``.

    """
    support = Coins(trained_fraction, resample)
    return ZerothOrder(Restricted(eps, directions.build(distribution), support), Sgd())
