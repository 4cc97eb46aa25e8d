"""FT-AdamW: first-order fine-tuning as most people do it.

Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, arXiv 1711.05101,
Algorithm 2::

    m <- b1 m + (1 - b1) g        v <- b2 v + (1 - b2) g^2        g = grad f(theta), one minibatch
    theta <- theta - lr wd theta - lr m_hat / (sqrt(v_hat) + adam_eps)

with bias-corrected m_hat = m / (1 - b1^t) and v_hat = v / (1 - b2^t). Two more copies of the
weights, in the weights' dtype: 16 bytes a parameter in float32, 8 in bfloat16.

Where we differ: (1) from the MeZO paper's FT, which keeps float32 weights and runs the model in
float16 (18 bytes a parameter): ours is pure, in one dtype; (2) lr wd is torch's, where the paper
has a schedule of its own for the decay. In bfloat16 a change of v by less than about 0.4 % is
rounded away, so v hardly decays. In float16 it is refused at the usual ``adam_eps``.

>>> import torch
>>> from zo_core import Closure, Params
>>> theta = torch.tensor([[1.0, -2.0, 3.0]])
>>> p = theta.clone().requires_grad_()
>>> params, adamw = Params([("w", p)]), method(weight_decay=0.5)
>>> _ = adamw.step_(params, Closure(lambda: (p**2).sum()), adamw.init(params), seed=0, lr=0.1)
>>> g = 2 * theta  # first step: m_hat = g, v_hat = g^2
>>> torch.allclose(p.detach(), theta - 0.1 * 0.5 * theta - 0.1 * g / (g.abs() + 1e-8))
True
"""

from __future__ import annotations

from zo_core import first_order
from zo_core.base import Method

TITLE = "FT-AdamW"
PAPER = "arXiv 1711.05101, Algorithm 2"
BIAS = ""
DIFFERS = "weights, gradients and moments in one dtype (the MeZO paper's FT is mixed precision)"


def method(
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    adam_eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay_group: str = "matrices",
) -> Method:
    """Return AdamW.

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        adam_eps: added to the denominator.
        weight_decay: decoupled; 0 by default, as in the MeZO paper's runs (torch's is 0.01).
        decay_group: "matrices" leaves biases and norms alone; "all" does not.

    """
    return first_order.adamw(
        beta1=beta1,
        beta2=beta2,
        adam_eps=adam_eps,
        weight_decay=weight_decay,
        decay_group=decay_group,
    )
