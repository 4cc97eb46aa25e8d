"""Layer-by-layer MeZO: each block is perturbed alone, then all move at once.

ZO-Bench (Zhang et al., ICML 2024, arXiv 2402.11592), block-wise estimation; a flag of the released
MeZO (Malladi et al., NeurIPS 2023, arXiv 2305.17333) as well::

    c_b   = [f(theta + eps z_b) - f(theta - eps z_b)] / (2 eps)    z_b ~ N(0, I) on block b, else 0
    theta <- theta - lr sum_b c_b z_b                              all c_b at the same theta

Where we differ: (1) every block has a direction of its own (ZO-Bench draws each from the same
seed); (2) the estimate is a pair (seed, c) a block, where MeZO's code sums a gradient buffer (and
crashes); (3) blocks are those of ``zo_core.blocks``: a layer each, embeddings, final norm, head.

>>> import torch
>>> from zo_core import Closure, Params, derive_seed, sample
>>> names, theta = ("layers.0.w", "layers.1.w"), torch.tensor([[1.0, -2.0], [3.0, 0.5]])
>>> def f(t): return (t**2).sum() + t.prod()
>>> p = theta.clone()
>>> params, layerwise = Params(zip(names, p)), method(eps=0.01)
>>> _ = layerwise.step_(params, Closure(lambda: f(p)), layerwise.init(params), seed=7, lr=0.1)
>>> g = torch.zeros(2, 2)
>>> for b in (0, 1):
...     z = torch.zeros(2, 2)
...     z[b] = sample("gaussian", derive_seed(7, "block", b), params[b].key, 2)
...     g += (f(theta + 0.01 * z) - f(theta - 0.01 * z)) / (2 * 0.01) * z
>>> torch.allclose(p, theta - 0.1 * g, rtol=1e-3)
True
"""

from __future__ import annotations

from zo_core import directions
from zo_core.base import Method
from zo_core.estimators.layerwise import Layerwise
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import ZerothOrder

TITLE = "MeZO, layer by layer"
PAPER = "arXiv 2402.11592, block-wise; arXiv 2305.17333, released code"
BIAS = ""
DIFFERS = "a direction of its own for each block; (seed, c) pairs for a gradient buffer"


def method(*, eps: float = 1e-3, distribution: str = "gaussian") -> Method:
    """Return layer-by-layer MeZO: 2 queries a block and 4 noise passes a step, no state.

    Args:
        eps: perturbation scale.
        distribution: of z; any file of ``zo_core/directions``.

    """
    return ZerothOrder(Layerwise(eps, directions.build(distribution)), Sgd())
