"""n-SPSA: MeZO with the mean of n estimates a step, in the memory of one.

Malladi et al., "Fine-tuning language models with just forward passes", NeurIPS 2023, arXiv
2305.17333, Definition 1 and Algorithm 2; sample schedules: Table 6::

    c_k   = [f(theta + eps z_k) - f(theta - eps z_k)] / (2 eps)     one minibatch, k = 1 .. n
    theta <- theta - (lr / n) sum_k c_k z_k                         one pass, n directions drawn

At equal forward passes the paper finds it marginally better or no better than n = 1.

Where we differ: (1) all n look at the same minibatch, as in the released code (Algorithm 2 draws
one for each); (2) the estimate is n pairs (seed, c_k / n), where the released code sums a gradient
buffer the size of the model; (3) the growing schedule adds one direction every ``growth_steps``
steps, so it does not hang on how long the run is to be (the released one does); (4) between two
directions theta is moved in one pass and not brought back in between; (5) ``clip`` bounds each
c_k / n.

>>> import torch
>>> from zo_core import Closure, Params, derive_seed, sample
>>> theta = torch.tensor([1.0, -2.0, 3.0])
>>> def f(t): return (t**2).sum()
>>> p = theta.clone()
>>> params, n_spsa = Params([("w", p)]), method(samples=3, eps=0.01)
>>> _ = n_spsa.step_(params, Closure(lambda: f(p)), n_spsa.init(params), seed=7, lr=0.1)
>>> g = torch.zeros(3)
>>> for k in range(3):
...     z = sample("gaussian", derive_seed(7, "sample", k), params[0].key, 3)
...     g += (f(theta + 0.01 * z) - f(theta - 0.01 * z)) / (2 * 0.01) * z / 3
>>> torch.allclose(p, theta - 0.1 * g, rtol=1e-3)
True
"""

from __future__ import annotations

from zo_core import directions
from zo_core.base import Method
from zo_core.estimators.n_spsa import NSpsa
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import ZerothOrder

TITLE = "MeZO, n-SPSA"
PAPER = "arXiv 2305.17333, Algorithm 2"
BIAS = ""
DIFFERS = "one minibatch for all n, (seed, c) pairs for a gradient buffer, schedule by steps"


def method(
    *,
    eps: float = 1e-3,
    samples: int = 4,
    growth_steps: int = 0,
    scale_lr: bool = False,
    distribution: str = "gaussian",
) -> Method:
    """Return MeZO with n-SPSA: 2 n queries and 4 n - 1 noise passes a step, no state.

    Args:
        eps: perturbation scale.
        samples: n, the estimates of a step; the largest n where it grows.
        growth_steps: n begins at 1 and grows by one after so many steps; 0: it is constant.
        scale_lr: multiply the learning rate by n, as the paper does with its schedules.
        distribution: of z; any file of ``zo_core/directions``.

    """
    law = directions.build(distribution)
    return ZerothOrder(NSpsa(eps, law, samples, growth_steps, scale_lr), Sgd())
