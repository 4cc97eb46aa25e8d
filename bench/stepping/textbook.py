"""The MeZO step as the paper writes it: arXiv 2305.17333, Algorithm 1, and nothing else.

    for the seed s:   theta <- theta + eps z;  l+ = L(theta)         z drawn anew from s each time
                      theta <- theta - 2 eps z;  l- = L(theta)
                      theta <- theta + eps z
                      theta <- theta - lr (l+ - l-) / (2 eps) z

With torch's own generator, and a new tensor for each move, as in the released code
(github.com/princeton-nlp/MeZO). It is what others are compared with, and must not be improved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

NOISE_PASSES = 4
QUERIES = 2


def step_(
    params: Sequence[Tensor], loss: Callable[[], Tensor], *, seed: int, lr: float, eps: float
) -> float:
    """Take one step and return the projected gradient. Reseeds torch's global generator.

    Costs two evaluations of ``loss``, four draws of noise for every parameter, and three
    temporaries of the largest one's size.
    """
    _move_(params, seed, +1.0, eps)
    with torch.inference_mode():
        plus = float(loss())
    _move_(params, seed, -2.0, eps)
    with torch.inference_mode():
        minus = float(loss())
    _move_(params, seed, +1.0, eps)
    projected = (plus - minus) / (2 * eps)
    _move_(params, seed, -lr, projected)
    return projected


def _move_(params: Sequence[Tensor], seed: int, scale: float, eps: float) -> None:
    torch.manual_seed(seed)
    for p in params:
        z = torch.normal(
            mean=0, std=1, size=p.data.size(), device=p.data.device, dtype=p.data.dtype
        )
        p.data = p.data + scale * z * eps
