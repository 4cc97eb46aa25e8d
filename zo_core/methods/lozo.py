"""LOZO: perturb weight matrices along matrices of low rank.

Chen, Zhang, Cao, Yuan and Wen, "Enhancing zeroth-order fine-tuning for language models with
low-rank structures", ICLR 2025, arXiv 2410.07698, Algorithm 1. For a weight matrix (m, n)::

    z     = U V^T / sqrt(r)                      U (m, r), V (n, r) ~ N(0, 1); V for nu steps
    c     = [f(theta + eps z) - f(theta - eps z)] / (2 eps)
    theta <- theta - lr c z

and z ~ N(0, I) for the other tensors.

Where we differ: (1) the paper perturbs by eps' U V^T and steps along c' U V^T / r: the same
estimate, with its eps' our eps / sqrt(r); with the root, entries of z have variance 1 in matrices
and vectors alike. The released code leaves 1/r to the learning rate: its rates are ours over r.
(2) Nothing is stored: factors are drawn again from their seeds, and no (m, n) matrix exists beyond
a piece. (3) Tensors of more dimensions are matrices (shape[0], rest); a matrix that the factors
would not make smaller has z ~ N(0, I). (4) As for MeZO.

>>> import torch
>>> from zo_core import Closure, Params, derive_seed, sample
>>> theta = torch.arange(12.0).view(3, 4)
>>> def f(t): return (t**2).sum()
>>> p = theta.clone()
>>> params, lozo = Params([("w", p)]), method(eps=0.01, rank=1)
>>> _ = lozo.step_(params, Closure(lambda: f(p)), lozo.init(params), seed=7, lr=0.01)
>>> u = sample("gaussian", derive_seed(7, "U"), params[0].key, 3)
>>> v = sample("gaussian", derive_seed(derive_seed(7, "subspace"), "V"), params[0].key, 4)
>>> z = torch.outer(u, v)
>>> c = (f(theta + 0.01 * z) - f(theta - 0.01 * z)) / (2 * 0.01)
>>> torch.allclose(p, theta - 0.01 * c * z, rtol=1e-3)
True
"""

from __future__ import annotations

from zo_core.base import Method
from zo_core.estimators.low_rank import LowRankTwoPoint
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import ZerothOrder

TITLE = "LOZO (low-rank perturbations)"
PAPER = "arXiv 2410.07698, Algorithm 1"
BIAS = ""
DIFFERS = "z = U V^T / sqrt(r), so eps is the paper's times sqrt(r); factors are drawn, not stored"


def method(*, eps: float = 1e-3, rank: int = 2, interval: int = 50) -> Method:
    """Return LOZO.

    Args:
        eps: perturbation scale; of one entry, whatever the rank.
        rank: r, of the perturbation.
        interval: nu, how many steps V is held.

    """
    return ZerothOrder(LowRankTwoPoint(eps, rank, interval), Sgd())
