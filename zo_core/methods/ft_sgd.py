"""FT-SGD: first-order fine-tuning by plain stochastic gradient descent, the leanest baseline.

Robbins and Monro, "A stochastic approximation method", Annals of Mathematical Statistics 1951::

    theta <- theta - lr (grad f(theta) + wd theta)        one minibatch

In the MeZO paper (arXiv 2305.17333) it is the rival of the same memory class; one gradient beside
the weights, and no state.

Where we differ: nowhere; it is ``torch.optim.SGD``, fused. Without momentum torch's weight decay,
which is part of the gradient, equals the decoupled one.

>>> import torch
>>> from zo_core import Closure, Params
>>> theta = torch.tensor([[1.0, -2.0, 3.0]])
>>> p = theta.clone().requires_grad_()
>>> params, ft_sgd = Params([("w", p)]), method(weight_decay=0.5)
>>> _ = ft_sgd.step_(params, Closure(lambda: (p**2).sum()), ft_sgd.init(params), seed=0, lr=0.1)
>>> torch.allclose(p.detach(), theta - 0.1 * (2 * theta + 0.5 * theta))
True
"""

from __future__ import annotations

import torch

from zo_core.base import Method
from zo_core.first_order import FirstOrder

TITLE = "FT-SGD"
PAPER = "torch.optim.SGD"
BIAS = ""
DIFFERS = ""


def method(*, weight_decay: float = 0.0, decay_group: str = "matrices") -> Method:
    """Return SGD without momentum.

    Args:
        weight_decay: theta loses lr * weight_decay of itself a step.
        decay_group: "matrices" leaves biases and norms alone; "all" does not.

    """
    return FirstOrder(
        lambda groups: torch.optim.SGD(groups, lr=0.0, fused=True),
        state_bytes=lambda params: 0,
        weight_decay=weight_decay,
        decay_group=decay_group,
    )
