"""Sparse-MeZO: move only the weights of small magnitude; a mask from theta, new every step.

Liu, Zhu, Gong, Cheng, Hsieh and You, "Sparse MeZO: less parameters for better performance in
zeroth-order LLM fine-tuning", NeurIPS 2025, arXiv 2402.15751, section 3. Before training, for each
tensor h = the ``trained_fraction`` quantile of |theta|; then each step::

    m     = (|theta| <= h)                                              theta unperturbed
    c     = [f(theta + eps m z) - f(theta - eps m z)] / (2 eps)
    theta <- theta - lr c m z

The paper's sparsity is the fraction *frozen*: its 0.75 is ``trained_fraction = 0.25``. A weight
that grows past h freezes for good, and all of a constant tensor is trained until it moves:
``trained_entries`` counts what is left.

Where we differ: (1) |theta| is compared, as the paper's text says and its pseudo-code does not;
(2) h is the order statistic ceil(fraction n), exact, found without a copy; (3) the mask in the
forward pass (the paper's efficient implementation) is the default, and with it so is
``restore = "exact"``, which it needs; "packed" holds a bit a weight, "dense" a number; (4) where
h is 0 (a tensor that begins at zero: LoRA's B, a new head, biases) all of the tensor is trained,
for good: with the paper's rule it would move once and freeze.

>>> import torch
>>> from zo_core import Closure, Params, sample
>>> theta = torch.tensor([1.0, -2.0, 3.0, -0.5])
>>> def f(t): return ((t - 1) ** 4).sum()
>>> p = theta.clone()
>>> params, sparse = Params([("w", p)]), method(eps=0.01, trained_fraction=0.5)
>>> _ = sparse.step_(params, Closure(lambda: f(p)), sparse.init(params), seed=7, lr=0.01)
>>> mz = (theta.abs() <= 1.0) * sample("gaussian", 7, params[0].key, 4)
>>> c = (f(theta + 0.01 * mz) - f(theta - 0.01 * mz)) / (2 * 0.01)
>>> torch.allclose(p, theta - 0.01 * c * mz, rtol=1e-4)
True
>>> (p == theta).tolist()
[False, True, True, False]
"""

from __future__ import annotations

from zo_core import directions
from zo_core.base import Method
from zo_core.estimators.restricted import Restricted
from zo_core.estimators.small_weights import SmallEntries
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import Settings, ZerothOrder

TITLE = "Sparse-MeZO"
PAPER = "arXiv 2402.15751, section 3"
BIAS = "the gradient of the entries of small magnitude, zero elsewhere"
DIFFERS = "magnitudes where the pseudo-code compares signed values; all of a tensor at zero trains"
STORAGES = ("in_forward", "packed", "dense")


def method(
    *,
    eps: float = 1e-3,
    trained_fraction: float = 0.25,
    storage: str = "in_forward",
    refresh: int = 1,
    distribution: str = "gaussian",
) -> Method:
    """Return Sparse-MeZO.

    Args:
        eps: perturbation scale; 1e-3 in the paper.
        trained_fraction: of each tensor, that its threshold lets through (a threshold of 0: all);
            1 - the paper's sparsity (0.70 to 0.80 by task).
        storage: of the mask: "in_forward" (none; then restore must be "exact"), "packed" (a bit a
            weight) or "dense" (a number a weight, the paper's vanilla form).
        refresh: steps that a stored mask is held; 1 in the paper.
        distribution: of z; "gaussian" as in the paper, or any file of ``zo_core/directions``.

    """
    support = SmallEntries(trained_fraction, storage, refresh)
    estimator = Restricted(eps, directions.build(distribution), support)
    settings = Settings(restore="exact") if estimator.reads_weights else Settings()
    return ZerothOrder(estimator, Sgd(), settings)
