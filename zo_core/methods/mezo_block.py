"""Block-coordinate MeZO: a step perturbs and moves one block, or a few.

LeZO (Wang et al., arXiv 2410.09823: a random subset of layers a step) and MeZO-BCD (arXiv
2501.19099: block coordinate descent, one block a step)::

    z     ~ N(0, I) on the blocks of this step, else 0
    c     = [f(theta + eps z) - f(theta - eps z)] / (2 eps)
    theta <- theta - lr c z                          unbiased: lr c z (blocks) / (blocks a step)

Blocks that are not chosen are not visited: of L equal blocks a step generates 1/L of the noise.

Where we differ: (1) embeddings, final norm and head are blocks like the layers, chosen in their
turn; (2) ``unbiased`` weighs by the inverse probability of a block, an idea of AdaLeZO (arXiv
2604.18264); (3) a random choice is uniform without replacement, from the step's own seed.

>>> import torch
>>> from zo_core import Closure, Params, sample
>>> names, theta = ("layers.0.w", "layers.1.w"), torch.tensor([[1.0, -2.0], [3.0, 0.5]])
>>> def f(t): return (t**2).sum() + t.prod()
>>> p = theta.clone()
>>> params, block = Params(zip(names, p)), method(order="cyclic", unbiased=True, eps=0.01)
>>> _ = block.step_(params, Closure(lambda: f(p)), block.init(params), seed=7, lr=0.1)
>>> z = torch.zeros(2, 2)
>>> z[0] = sample("gaussian", 7, params[0].key, 2)
>>> c = (f(theta + 0.01 * z) - f(theta - 0.01 * z)) / (2 * 0.01)
>>> torch.allclose(p, theta - 0.1 * 2 / 1 * c * z, rtol=1e-3)
True
"""

from __future__ import annotations

from zo_core import directions
from zo_core.base import Method
from zo_core.estimators.some_blocks import SomeBlocks
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import ZerothOrder

TITLE = "MeZO, block-coordinate"
PAPER = "arXiv 2410.09823 (LeZO); arXiv 2501.19099 (MeZO-BCD)"
BIAS = "the gradient times (blocks a step) / (blocks), unless unbiased=true"
DIFFERS = "embeddings and head are blocks too; optional weights by inverse probability"


def method(
    *,
    eps: float = 1e-3,
    blocks_per_step: int = 1,
    order: str = "random",
    unbiased: bool = False,
    distribution: str = "gaussian",
) -> Method:
    """Return block-coordinate MeZO: 2 queries, noise for the chosen blocks alone, no state.

    Args:
        eps: perturbation scale.
        blocks_per_step: how many blocks a step perturbs and moves, jointly.
        order: "random" (uniform subsets) or "cyclic" (in the order of the model).
        unbiased: multiply by (blocks) / (blocks_per_step), so that the mean is the gradient.
        distribution: of z; any file of ``zo_core/directions``.

    """
    law = directions.build(distribution)
    return ZerothOrder(SomeBlocks(eps, law, blocks_per_step, order, unbiased), Sgd())
