"""FZOO: N one-sided candidates, and a step in units of the spread of their losses.

Dang, Guo, Zhao, Ye, Zheng, Dai and Tsang, "FZOO: fast zeroth-order optimizer for fine-tuning large
language models towards Adam-scale speed", ICLR 2026, arXiv 2506.09034::

    l_0   = f(theta);  l_i = f(theta + eps u_i), i = 1 .. N;  u_i of independent signs
    sigma = std of l_1 .. l_N
    theta <- theta - lr 1/N sum_i [(l_i - l_0) / sigma] u_i

With ``restore = "batched"`` all N + 1 points are evaluated in one forward pass.

Where we differ: (1) as the released code, we divide by sigma alone; the paper's formula divides by
eps as well, so its rates are ours times eps. (2) sigma has N below (the code's), not N - 1.
(3) Losses of the step before are not used again (the code's option is dead code). (4) Candidates
that all have the same loss give no step, where the code divides by 0. (5) The released batched
forward draws noise that its update does not know; ours is the same sum for both.

>>> import torch
>>> from zo_core import Closure, Params, derive_seed, sample
>>> theta = torch.tensor([1.0, -2.0, 3.0])
>>> def f(t): return (t**2).sum()
>>> p = theta.clone()
>>> params, fzoo = Params([("w", p)]), method(eps=0.01, candidates=4)
>>> _ = fzoo.step_(params, Closure(lambda: f(p)), fzoo.init(params), seed=7, lr=0.1)
>>> seeds = [derive_seed(7, "candidate", i) for i in range(4)]
>>> u = torch.stack([sample("rademacher", seed, params[0].key, 3) for seed in seeds])
>>> l = torch.stack([f(theta + 0.01 * row) for row in u])
>>> weights = (l - f(theta)) / (4 * l.std(correction=0))
>>> torch.allclose(p, theta - 0.1 * weights @ u, rtol=1e-3)
True
"""

from __future__ import annotations

from zo_core import directions
from zo_core.base import Method
from zo_core.estimators.normalised import Normalised
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import ZerothOrder

TITLE = "FZOO (normalised by the spread of N candidates)"
PAPER = "arXiv 2506.09034, Algorithm 1"
BIAS = "the gradient times eps over the spread of the losses: about a unit vector"
DIFFERS = "divides by sigma alone, as the released code; equal losses give no step"


def method(*, eps: float = 1e-3, distribution: str = "rademacher", candidates: int = 8) -> Method:
    """Return FZOO.

    Args:
        eps: perturbation scale.
        distribution: of u; "rademacher" as in the paper, or any file of ``zo_core/directions``.
        candidates: N, how many directions a step tries.

    """
    return ZerothOrder(Normalised(eps, directions.build(distribution), candidates), Sgd())
