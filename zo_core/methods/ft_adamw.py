"""FT-AdamW: first-order fine-tuning as most people do it.

Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, arXiv 1711.05101::

    m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2        g = grad f(theta), one minibatch
    theta <- theta - lr wd theta - lr m_hat / (sqrt(v_hat) + adam_eps)

with bias-corrected m_hat = m / (1 - b1^t) and v_hat = v / (1 - b2^t). Two more copies of the
weights, in the weights' dtype.

>>> import torch
>>> from zo_core import Closure, Params
>>> theta = torch.tensor([1.0, -2.0, 3.0])
>>> p = theta.clone().requires_grad_()
>>> params, adamw = Params([("w", p)]), method(weight_decay=0.5)
>>> _ = adamw.step_(params, Closure(lambda: (p**2).sum()), adamw.init(params), seed=0, lr=0.1)
>>> g = 2 * theta  # first step: m_hat = g, v_hat = g^2
>>> torch.allclose(p.detach(), theta - 0.1 * 0.5 * theta - 0.1 * g / (g.abs() + 1e-8))
True
"""

from __future__ import annotations

import torch

from zo_core.base import Method
from zo_core.first_order import FirstOrder

TITLE = "FT-AdamW"
PAPER = "arXiv 1711.05101"


def method(
    *, beta1: float = 0.9, beta2: float = 0.999, adam_eps: float = 1e-8, weight_decay: float = 0.0
) -> Method:
    """Return AdamW.

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        adam_eps: added to the denominator; below float16's smallest number at its default.
        weight_decay: decoupled; 0 by default, as in the MeZO paper's runs (torch's is 0.01).

    """
    return FirstOrder(
        lambda tensors: torch.optim.AdamW(
            tensors,
            lr=0.0,
            betas=(beta1, beta2),
            eps=adam_eps,
            weight_decay=weight_decay,
            fused=True,
        ),
        state_copies=2,
        state_scalars=1,
    )
