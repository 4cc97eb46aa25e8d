"""FT-SGD with momentum: first-order fine-tuning by the heavy ball.

Polyak, "Some methods of speeding up the convergence of iteration methods", USSR Computational
Mathematics and Mathematical Physics 1964, as in ``torch.optim.SGD``::

    m     <- momentum m + g        g = grad f(theta) + wd theta, one minibatch; m = g at first
    theta <- theta - lr m

One more copy of the weights, in the weights' dtype.

Where we differ: from Polyak as torch does, lr multiplies m and not g, which is another method when
lr changes on the way.

>>> import torch
>>> from zo_core import Closure, Params
>>> theta = torch.tensor([1.0, -2.0, 3.0])
>>> p = theta.clone().requires_grad_()
>>> params, ball = Params([("w", p)]), method(momentum=0.5)
>>> loss, state = Closure(lambda: (p**2).sum()), ball.init(params)
>>> for step in range(2):
...     state, _ = ball.step_(params, loss, state, seed=step, lr=0.1)
>>> m = 2 * theta
>>> once = theta - 0.1 * m
>>> m = 0.5 * m + 2 * once
>>> torch.allclose(p.detach(), once - 0.1 * m)
True
"""

from __future__ import annotations

import torch

from zo_core.base import Method
from zo_core.first_order import FirstOrder, check_betas

TITLE = "FT-SGD-momentum"
PAPER = "torch.optim.SGD"
BIAS = ""
DIFFERS = "lr multiplies the momentum, as in torch, not the gradient"


def method(
    *, momentum: float = 0.9, weight_decay: float = 0.0, decay_group: str = "matrices"
) -> Method:
    """Return SGD with momentum.

    Args:
        momentum: what is left of m after a step; 0.9 as in ZO-Bench (arXiv 2402.11592).
        weight_decay: added to the gradient, so that it passes through m; not decoupled.
        decay_group: "matrices" leaves biases and norms alone; "all" does not.

    """
    check_betas(momentum)
    return FirstOrder(
        lambda groups: torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True),
        state_bytes=lambda params: params.bytes if momentum else 0,
        weight_decay=weight_decay,
        decay_group=decay_group,
    )
