"""FT-AdamW-8bit: AdamW whose two moments are kept in 8 bits.

Dettmers, Lewis, Shleifer and Zettlemoyer, "8-bit optimizers via block-wise quantization", ICLR
2022, arXiv 2110.02861. AdamW as in ``ft_adamw``, but between steps m and v stand as bytes: of each
block of 256 entries, the index of the nearest of 256 values (spaced by "dynamic tree"
quantisation, section 2.2) times the block's largest magnitude, a float32::

    m <- b1 dequantised(m) + (1 - b1) g        v <- b2 dequantised(v) + (1 - b2) g^2    in float32
    theta <- theta - lr wd theta - lr m_hat / (sqrt(v_hat) + adam_eps)

So 2.03 bytes of state a parameter. The code is the ``bitsandbytes`` package's; where it is not
installed, or has no kernel for the device, the method says so (``Unsupported``).

Where we differ: (1) from the paper, as bitsandbytes does, tensors of fewer than 4096 entries keep
float32 moments, and blocks are of 256 instead of 2048; (2) embeddings are not held in 32 bits and
get no extra layer norm (section 2.3). Versions differ in whether decay comes before or after the
step. On the CPU, each tensor's step has float32 temporaries of six times its size.

>>> import pytest
>>> _ = pytest.importorskip("bitsandbytes")
>>> import torch
>>> from zo_core import Closure, Params
>>> theta = torch.linspace(1.0, 2.0, 8192).view(2, -1)
>>> p = theta.clone().requires_grad_()
>>> params, adamw = Params([("w", p)]), method()
>>> loss, state = Closure(lambda: (p**2).sum()), adamw.init(params)
>>> _ = adamw.step_(params, loss, state, seed=0, lr=0.1)
>>> once = theta - 0.1  # first step: m_hat = g, v_hat = g^2, and every sign is plus
>>> torch.allclose(p.detach(), once)
True
>>> _ = adamw.step_(params, loss, state, seed=1, lr=0.1)
>>> m, v = 0.9 * 0.1 * 2 * theta + 0.1 * 2 * once, 0.999e-3 * (2 * theta)**2 + 1e-3 * (2 * once)**2
>>> exact = once - 0.1 * (m / (1 - 0.9**2)) / (v / (1 - 0.999**2)).sqrt()
>>> gap = (p.detach() - exact).abs().max().item()  # of 0.1, what 8 bits get wrong
>>> 1e-6 < gap < 0.1 * 0.1
True
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from zo_core.base import Method, Params, Unsupported
from zo_core.first_order import FirstOrder, Groups, check_betas

TITLE = "FT-AdamW-8bit"
PAPER = "arXiv 2110.02861"
BIAS = ""
DIFFERS = "bitsandbytes: blocks of 256, small tensors in 32 bits, embeddings like all others"
REQUIRES = ("bitsandbytes",)

_SMALLEST = 4096  # entries; tensors with fewer keep float32 moments
_BLOCK = 256
_MAPS = 2 * 256 * 4  # the two tables of 256 values
_TEMPORARIES = 6  # float32 copies of a tensor that the step makes on the CPU, measured


def method(
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    adam_eps: float = 1e-8,
    weight_decay: float = 0.0,
    decay_group: str = "matrices",
) -> Method:
    """Return AdamW with 8-bit moments.

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        adam_eps: added to the denominator, in float32.
        weight_decay: decoupled; 0 by default, as in the MeZO paper's runs.
        decay_group: "matrices" leaves biases and norms alone; "all" does not.

    """
    check_betas(beta1, beta2)

    def make(groups: Groups) -> torch.optim.Optimizer:
        for device, dtype in {(p.device, p.dtype) for g in groups for p in g["params"]}:
            _check_kernel(device, dtype)
        return _adamw(groups, beta1, beta2, adam_eps)

    return FirstOrder(
        make,
        state_bytes=state_bytes,
        weight_decay=weight_decay,
        decay_group=decay_group,
        temporary_bytes=_temporary_bytes,
    )


def state_bytes(params: Params) -> int:
    """Return what the two moments of all tensors occupy, scales and tables included."""
    quantised = [n for p in params if (n := p.tensor.numel()) >= _SMALLEST]
    small = sum(n for p in params if (n := p.tensor.numel()) < _SMALLEST)
    blocks = sum(-(-n // _BLOCK) for n in quantised)
    return 2 * sum(quantised) + 2 * 4 * blocks + 2 * 4 * small + (_MAPS if quantised else 0)


def _temporary_bytes(params: Params) -> int:
    on_cpu = [p.tensor.numel() for p in params if p.tensor.device.type == "cpu"]
    return 4 * _TEMPORARIES * max(on_cpu, default=0)


def _adamw(groups: Groups, beta1: float, beta2: float, eps: float) -> torch.optim.Optimizer:
    try:
        bitsandbytes: Any = importlib.import_module("bitsandbytes")  # why here: optional, slow
    except ImportError as error:
        raise Unsupported(
            f"Method 'ft_adamw_8bit' needs the package bitsandbytes, which can't be imported "
            f"({error}): install it, or use 'ft_adamw'."
        ) from error
    made: torch.optim.Optimizer = bitsandbytes.optim.AdamW8bit(
        groups, lr=0.0, betas=(beta1, beta2), eps=eps
    )
    return made


def _check_kernel(device: torch.device, dtype: torch.dtype) -> None:
    """Refuse what bitsandbytes has no kernel for, by a step of the smallest quantised tensor."""
    if dtype == torch.float64:
        raise Unsupported(
            "bitsandbytes has no kernel for float64: use float32 weights or 'ft_adamw'."
        )
    tensor = torch.zeros(_SMALLEST, dtype=dtype, device=device)
    tensor.grad = torch.zeros_like(tensor)
    try:
        _adamw([{"params": [tensor]}], 0.9, 0.999, 1e-8).step()
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, RuntimeError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise Unsupported(
            f"bitsandbytes can't run 8-bit AdamW on {device} with {dtype} ({reason}): "
            "use 'ft_adamw'."
        ) from error
