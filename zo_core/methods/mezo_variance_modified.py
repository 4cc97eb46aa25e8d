"""Variance-modified SPSA: MeZO that moves blocks by unequal amounts, with the same mean.

Malladi et al., "Fine-tuning language models with just forward passes", NeurIPS 2023, arXiv
2305.17333, appendix B.3::

    c     = [f(theta + eps z / D) - f(theta - eps z / D)] / (2 eps)      z ~ N(0, I)
    theta <- theta - lr c D z

D is constant on a block (a layer, the embeddings, the head), and by ``scale`` one of::

    parameter_norm    ||theta_b|| / sqrt(d_b)   of the weights that the run begins with
    gradient_norm     |c_b| / sqrt(d_b)         c_b: projected gradient with z on block b alone

over its mean over the blocks. The latter is measured in the first step, with two more queries a
block, and used from the second on; the first is a step of plain MeZO. The paper finds no gain
over MeZO, and a loss where D is measured.

Where we differ: (1) D is divided by its mean over the blocks, so that eps and lr keep their sizes;
(2) the root is of the count (the released code takes the root of the norm for parameters, and
leaves the count out for measured gradients); (3) a D of 0 becomes 1, as in the code, and one below
0.01 becomes 0.01; (4) D is measured once, not every epoch.

>>> import torch
>>> from zo_core import Closure, Params, sample
>>> names, theta = ("layers.0.w", "layers.1.w"), torch.tensor([[1.0, -2.0], [3.0, 0.5]])
>>> def f(t): return (t**2).sum() + t.prod()
>>> p = theta.clone()
>>> params, modified = Params(zip(names, p)), method(eps=0.01)
>>> _ = modified.step_(params, Closure(lambda: f(p)), modified.init(params), seed=7, lr=0.1)
>>> norms = theta.norm(dim=1) / 2**0.5
>>> D = (norms / norms.mean())[:, None]
>>> z = torch.stack([sample("gaussian", 7, param.key, 2) for param in params])
>>> c = (f(theta + 0.01 * z / D) - f(theta - 0.01 * z / D)) / (2 * 0.01)
>>> torch.allclose(p, theta - 0.1 * c * D * z, rtol=1e-3)
True
"""

from __future__ import annotations

from zo_core import directions
from zo_core.base import Method
from zo_core.estimators.block_scaled import BlockScaled
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import ZerothOrder

TITLE = "MeZO, variance-modified"
PAPER = "arXiv 2305.17333, appendix B.3"
BIAS = ""
DIFFERS = "D over its mean over the blocks, root of the count, measured once"


def method(
    *, eps: float = 1e-3, scale: str = "parameter_norm", distribution: str = "gaussian"
) -> Method:
    """Return the method: 2 queries and 4 noise passes a step; state: a number a block.

    Args:
        eps: perturbation scale of a block with D = 1.
        scale: what D is, "parameter_norm" or "gradient_norm" (whose first step has two more
            queries a block).
        distribution: of z; any file of ``zo_core/directions``.

    """
    law = directions.build(distribution)
    return ZerothOrder(BlockScaled(eps, law, scale, keeps_mean=True), Sgd())
