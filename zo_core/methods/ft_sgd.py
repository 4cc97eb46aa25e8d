"""FT-SGD: first-order fine-tuning by plain stochastic gradient descent, the leanest baseline.

::

    theta <- theta - lr grad f(theta)        one minibatch

>>> import torch
>>> from zo_core import Closure, Params
>>> theta = torch.tensor([1.0, -2.0, 3.0])
>>> p = theta.clone().requires_grad_()
>>> params, ft_sgd = Params([("w", p)]), method()
>>> _ = ft_sgd.step_(params, Closure(lambda: (p**2).sum()), ft_sgd.init(params), seed=0, lr=0.1)
>>> torch.allclose(p.detach(), theta - 0.1 * 2 * theta)
True
"""

from __future__ import annotations

import torch

from zo_core.base import Method
from zo_core.first_order import FirstOrder

TITLE = "FT-SGD"
PAPER = "torch.optim.SGD"


def method(*, weight_decay: float = 0.0) -> Method:
    """Return SGD without momentum; ``weight_decay`` as in torch (added to the gradient)."""
    return FirstOrder(
        lambda tensors: torch.optim.SGD(tensors, lr=0.0, weight_decay=weight_decay, fused=True),
        state_copies=0,
    )
