"""MeZO-SVRG: a full-batch estimate as control variate for the minibatch estimates after it.

Gautam, Park, Zhou, Raman and Ha, "Variance-reduced zeroth-order methods for fine-tuning language
models", ICML 2024, arXiv 2404.08080. Every q steps an anchor, over the anchor set::

    g_ref = c_0 z_0,  c_0 = [f(theta + eps z_0) - f(theta - eps z_0)] / (2 eps)
    theta_ref = theta;   theta <- theta - eta_1 g_ref

and between anchors, with one direction z and one minibatch at both places::

    c(x)  = [f(x + eps z) - f(x - eps z)] / (2 eps)
    theta <- theta - eta_2 ( [c(theta) - c(theta_ref)] z + g_ref )

``lr`` of the engine is eta_2. An anchor costs two queries of the anchor set, the others four of a
minibatch. Where theta = theta_ref the correction is 0 exactly.

Where we differ: (1) z is shared by the two estimates of a step, without which nothing cancels (the
released code draws two, and its snapshot is a reference to the live weights: that is
``mezo_svrg_released``); (2) ``storage = "replay"`` keeps theta_ref and g_ref as seeds and scalars,
in the memory of MeZO, for longer walks: 2 + 2 q noise passes a step in place; ``"dense"`` keeps
two copies of the weights; (3) annealing compares windows of the losses that a step sees anyhow, at
theta +- eps z, where the code makes a forward pass more; (4) its floor is a share of the rate: at
the ratio 10 the code's floors (1e-5 and 1e-6) are one share of both rates.

Replay in 16 bits: an update that is rounded away is walked back all the same, so theta_ref is off
by the roundings of at most q updates, with any ``restore``; ``restore = "exact"`` leaves theta as
found, and ``storage = "dense"`` has theta_ref to the bit.

>>> import torch
>>> from zo_core import Closure, Params, sample
>>> start = torch.tensor([1.0, -2.0, 3.0])
>>> def full(t): return (t**4).sum()
>>> def batch(t): return (t**4).sum() + t[0] * t[1]
>>> p = start.clone()
>>> params, svrg = Params([("w", p)]), method(eps=0.01, anchor_lr_ratio=10.0)
>>> closure = Closure(lambda: batch(p), lambda: full(p))
>>> state, _ = svrg.step_(params, closure, svrg.init(params), seed=7, lr=1e-4)
>>> z0 = sample("gaussian", 7, params[0].key, 3)
>>> c0 = (full(start + 0.01 * z0) - full(start - 0.01 * z0)) / (2 * 0.01)
>>> theta = start - 1e-3 * c0 * z0
>>> torch.allclose(p, theta, rtol=1e-4)
True
>>> state, _ = svrg.step_(params, closure, state, seed=8, lr=1e-4)
>>> z = sample("gaussian", 8, params[0].key, 3)
>>> def c(x): return (batch(x + 0.01 * z) - batch(x - 0.01 * z)) / (2 * 0.01)
>>> torch.allclose(p, theta - 1e-4 * ((c(theta) - c(start)) * z + c0 * z0), rtol=1e-4)
True
"""

from __future__ import annotations

from zo_core import directions
from zo_core.base import Method
from zo_core.estimators.annealing import Annealing
from zo_core.estimators.svrg import Svrg
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import ZerothOrder

TITLE = "MeZO-SVRG"
PAPER = "arXiv 2404.08080"
BIAS = ""
DIFFERS = "one direction at both points, a true snapshot, and (replay) no copies of the weights"
STORAGES = ("replay", "dense")


def method(
    *,
    eps: float = 1e-3,
    period: int = 2,
    anchor_lr_ratio: float = 10.0,
    storage: str = "replay",
    anneal: float = 0.0,
    anneal_every: int = 8,
    anneal_floor: float = 0.1,
    distribution: str = "gaussian",
) -> Method:
    """Return MeZO-SVRG.

    Args:
        eps: perturbation scale; 1e-3 in the paper.
        period: steps from anchor to anchor, q; 2 in the paper.
        anchor_lr_ratio: eta_1 / eta_2; 10 is that of the paper's RoBERTa grids (eta_1 of 1e-4 and
            1e-5, eta_2 of 1e-5 and 1e-6).
        storage: "replay" (seeds and scalars) or "dense" (two copies of the weights).
        anneal: divides both rates when the loss has risen; 3, 4 or 5 in the paper's grids, 0 off.
        anneal_every: steps of a window, an epoch's; 8 in the released scripts.
        anneal_floor: the smallest factor that annealing leaves; 0.1 takes eta_2 = 1e-5 to 1e-6.
        distribution: of z; "gaussian" as in the paper, or any file of ``zo_core/directions``.

    """
    annealing = Annealing(anneal, anneal_every, anneal_floor)
    along = directions.build(distribution)
    return ZerothOrder(Svrg(eps, along, period, anchor_lr_ratio, storage, annealing), Sgd())
