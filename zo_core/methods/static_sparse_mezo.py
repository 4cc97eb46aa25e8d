"""Static extreme sparsity: move a thousandth of the weights, chosen once; the rest is read only.

Guo, Long, Zeng, Liu and others, "Zeroth-order fine-tuning of LLMs with transferable static
sparsity" (SensZOQ), ICLR 2025, arXiv 2406.02913; the same mask in MEERKAT (ICLR 2026). With S the
chosen entries, fixed before training, and z_S normal on S::

    c       = [f(theta + eps z_S) - f(theta - eps z_S)] / (2 eps)
    theta_S <- theta_S - lr c z_S

S is held as a list of places, four bytes each, and noise is drawn for S alone: perturbing and
updating cost a thousandth of what they do in MeZO.

Where we differ: (1) the papers choose by sensitivity (squared gradients on another corpus, which
take a backward pass); we choose by magnitude, the largest or the smallest of each tensor; (2) the
rest keeps its dtype: SensZOQ quantises it to 4 bits.

>>> import torch
>>> from zo_core import Closure, Params, sample
>>> theta = torch.tensor([1.0, -2.0, 3.0, -0.5])
>>> def f(t): return ((t - 1) ** 4).sum()
>>> p = theta.clone()
>>> params, static = Params([("w", p)]), method(eps=0.01, trained_fraction=0.5)
>>> _ = static.step_(params, Closure(lambda: f(p)), static.init(params), seed=7, lr=0.001)
>>> z = torch.zeros(4)
>>> z[[1, 2]] = sample("gaussian", 7, params[0].key, 2)
>>> c = (f(theta + 0.01 * z) - f(theta - 0.01 * z)) / (2 * 0.01)
>>> torch.allclose(p, theta - 0.001 * c * z, rtol=1e-4)
True
"""

from __future__ import annotations

from zo_core import directions
from zo_core.base import Method
from zo_core.estimators.chosen_entries import ChosenEntries
from zo_core.estimators.restricted import Restricted
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import ZerothOrder

TITLE = "Static sparse MeZO"
PAPER = "arXiv 2406.02913 (SensZOQ), with a mask by magnitude in place of its Fisher mask"
BIAS = "the gradient of the chosen entries, zero elsewhere"
DIFFERS = "the mask is chosen by magnitude, not by Fisher information; nothing is quantised"


def method(
    *,
    eps: float = 1e-3,
    trained_fraction: float = 0.001,
    criterion: str = "largest",
    distribution: str = "gaussian",
) -> Method:
    """Return MeZO on a static, extremely sparse mask.

    Args:
        eps: perturbation scale; 1e-3 in the paper.
        trained_fraction: of each tensor, rounded up to a whole entry; 0.001 in the paper.
        criterion: which magnitudes are trained: "largest" or "smallest".
        distribution: of z; "gaussian" as in the paper, or any file of ``zo_core/directions``.

    """
    support = ChosenEntries(trained_fraction, criterion)
    return ZerothOrder(Restricted(eps, directions.build(distribution), support), Sgd())
