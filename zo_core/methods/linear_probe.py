"""Linear probe: train the output head on the features of a frozen model.

Alain and Bengio, "Understanding intermediate layers using linear classifier probes", arXiv
1610.01644; a baseline of the MeZO paper (arXiv 2305.17333). With phi(x) the frozen features::

    minimise over the head W:  f(W) = loss(W phi(x), y)        by AdamW, one minibatch a step

For a run that trains the head alone (in the harness, ``tuning = "head"``), best with a new
classification head (``objective = "head"``): autograd then stops where the head begins, and the
memory is that of inference, the batch's features, and four copies of the head (with its gradient
and two moments). Nothing else is special to it: on all weights it would be ``ft_adamw``.

Where we differ: (1) the MeZO paper's code fits a logistic regression on features that were
computed once and cached, by L-BFGS with a ridge penalty chosen by cross-validation; ours takes
minibatch steps and computes the features each time, so that its steps, memory and time compare
with the other methods'; (2) dropout is as the model configures it in training; (3) the head is as
the model has it: RoBERTa's holds a dense layer with an activation as well.

>>> import torch
>>> from zo_core import Closure, Params
>>> phi = torch.tensor([[1.0, 2.0], [-1.0, 3.0]])  # of two examples
>>> theta = torch.tensor([[1.0, -2.0]])
>>> w = theta.clone().requires_grad_()
>>> params, probe = Params([("head.weight", w)]), method()
>>> loss = Closure(lambda: (phi @ w.T).square().mean())
>>> _ = probe.step_(params, loss, probe.init(params), seed=0, lr=0.1)
>>> g = (2 * (phi @ theta.T) * phi).mean(0)  # first step of AdamW: m_hat = g, v_hat = g^2
>>> torch.allclose(w.detach(), theta - 0.1 * g / (g.abs() + 1e-8))
True
"""

from __future__ import annotations

from zo_core import first_order
from zo_core.base import Method

TITLE = "Linear probe (AdamW)"
PAPER = "arXiv 1610.01644"
BIAS = ""
DIFFERS = "minibatch AdamW on the fly instead of L-BFGS on cached features"


def method(
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    adam_eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay_group: str = "matrices",
) -> Method:
    """Return AdamW, for a head alone.

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        adam_eps: added to the denominator.
        weight_decay: decoupled.
        decay_group: "matrices" leaves biases alone; "all" does not.

    """
    return first_order.adamw(
        beta1=beta1,
        beta2=beta2,
        adam_eps=adam_eps,
        weight_decay=weight_decay,
        decay_group=decay_group,
    )
