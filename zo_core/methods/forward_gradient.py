"""Forward gradient: the exact derivative along a random direction, in one forward pass.

Baydin, Pearlmutter, Syme, Wood and Torr, "Gradients without backpropagation", arXiv 2202.08587,
Algorithm 1; Forward-Grad in ZO-Bench (arXiv 2402.11592)::

    c     = grad f(theta) . v              one dual-number forward pass, v ~ N(0, I)
    theta <- theta - lr c v

The mean of c v is the gradient. MeZO without its eps: no differences, no perturbed weights, so no
drift; in return v is held as the weights' tangent (a copy of them), every activation carries one
too, and the loss must be differentiable by operations that have a forward derivative.

Where we differ: (1) v comes from the noise stream, so a step is the pair (seed, c), logged and
replayed like MeZO's; (2) v is drawn again for the update, so it is not alive beside it, and in
16-bit weights the tangent is v rounded while the update is not; (3) other laws than the normal are
offered; (4) attention is computed by its plain formula, since fused kernels have no forward
derivative; (5) dropout is off, as in MeZO. ``restore`` has nothing to do here, and is refused.

>>> import torch
>>> from zo_core import Closure, Params, sample
>>> theta = torch.tensor([1.0, -2.0, 3.0])
>>> p = theta.clone()
>>> params, forward = Params([("w", p)]), method()
>>> loss = Closure(lambda: (p**3).sum())
>>> _ = forward.step_(params, loss, forward.init(params), seed=7, lr=0.01)
>>> v = sample("gaussian", 7, params[0].key, 3)
>>> c = (3 * theta**2 * v).sum()
>>> torch.allclose(p, theta - 0.01 * c * v)
True
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad as _forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from zo_core import directions, noise
from zo_core.base import (
    Cost,
    Distribution,
    GradientEstimate,
    Method,
    Objective,
    Param,
    Params,
    Span,
    State,
    StepInfo,
    Term,
    Unsupported,
    UpdateRule,
    coefficient,
    finite,
    no_span,
)
from zo_core.updates.sgd import Sgd
from zo_core.zeroth_order import Settings

forward_ad: Any = _forward_ad  # which torch ships without types

TITLE = "Forward-Grad"
PAPER = "arXiv 2202.08587, Algorithm 1"
BIAS = ""
DIFFERS = "the noise stream (counter-based), v drawn again for the update, plain attention"


def method(*, distribution: str = "gaussian") -> Method:
    """Return the method.

    Args:
        distribution: of v; "gaussian" as in the paper, or any file of ``zo_core/directions``.

    """
    return ForwardGradient(directions.build(distribution))


@dataclass(frozen=True)
class ForwardGradient(Method):
    """The method. Scratch: the direction, as large as the weights."""

    distribution: Distribution
    update: UpdateRule = field(default_factory=Sgd)
    settings: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        """Refuse a perturber: there is nothing that it could do."""
        if self.settings.restore != "arithmetic":
            raise ValueError(
                "Forward gradient perturbs no weights, so nothing is restored: leave restore at "
                f"its default, got '{self.settings.restore}'."
            )

    @property
    def needs_gradient(self) -> bool:
        """No: no graph is recorded, and the objective is run in evaluation mode."""
        return False

    def configured(self, **options: Any) -> ForwardGradient:
        """Return the method with other settings."""
        return replace(self, settings=replace(self.settings, **options))

    def init(self, params: Params) -> State:
        """Return the update rule's state."""
        return self.update.init(params)

    def step_(
        self,
        params: Params,
        objective: Objective,
        state: State,
        *,
        seed: int,
        lr: float,
        span: Span = no_span,
    ) -> tuple[State, StepInfo]:
        """Look along the direction of ``seed``, then update.

        Raises:
            Unsupported: the objective has no derivative, or not by forward mode.
            NonFiniteLoss: the loss or its derivative is not finite; theta is untouched.

        """
        if not objective.differentiable:
            raise Unsupported(
                "This objective is not differentiable; forward gradient can't use it. "
                "Use a zeroth-order method such as 'mezo'."
            )
        loss, slope = directional(params, objective, self.distribution, seed, span)
        term = Term(seed, coefficient(slope))
        estimate = self.settings.clipped(GradientEstimate(self.distribution, (term,), (loss,)))
        with span("update"):
            state = self.replay_(params, estimate.terms, state, seed=seed, lr=lr)
        return state, StepInfo(estimate.losses, 1, estimate=estimate, lr=lr)

    def replay_(
        self,
        params: Params,
        terms: Sequence[Term],
        state: State,
        *,
        seed: int,
        lr: float,
        extra: Sequence[float] = (),
        retrace: bool = False,
    ) -> State:
        """Take the step's update again. Nothing was perturbed, so nothing is retraced."""
        estimate = GradientEstimate(self.distribution, tuple(terms))
        with torch.no_grad():
            write = self.settings.writer(seed, lr)
            return self.update.apply_(params, estimate, state, lr, write)[0]

    def cost(self, params: Params) -> Cost:
        """One query; the direction is drawn for the tangent and for the update."""
        kernel = noise.scratch_bytes(params)
        held = Cost(1, noise_passes=1, scratch_bytes=params.bytes + kernel)
        moved = self.update.cost(params)
        written = moved.scratch_bytes + self.settings.scratch_bytes(params) + kernel
        return held + replace(moved, scratch_bytes=written)


def directional(
    params: Params, objective: Objective, distribution: Distribution, seed: int, span: Span
) -> tuple[float, float]:
    """Return the loss, and its derivative along the direction of ``seed``.

    Raises:
        Unsupported: some operation has no forward derivative.
        NonFiniteLoss: either number is not finite.

    """
    with torch.no_grad(), forward_ad.dual_level():
        with span("perturb"):
            with warnings.catch_warnings():
                # torch compiles its own formulas with its own deprecated compiler at first use.
                warnings.simplefilter("ignore", DeprecationWarning)
                tangents = _tangents(params)
            distribution.add_(tangents, (Term(seed, 1.0),))
            del tangents
        with span("forward"), sdpa_kernel(SDPBackend.MATH):
            loss = _evaluate(objective)
            value, tangent = forward_ad.unpack_dual(loss)
            seen = finite(value)
    if tangent is None:
        raise ValueError("Expected a loss that depends on the trained tensors, got one of none.")
    return seen, finite(tangent, "directional derivative of the loss")


def _evaluate(objective: Objective) -> Tensor:
    try:
        return objective()
    except NotImplementedError as error:
        raise Unsupported(
            f"Forward gradient needs a forward derivative of every operation, and one has none "
            f"({str(error).splitlines()[0]}): use 'mezo'."
        ) from error


def _tangents(params: Params) -> list[Param]:
    """Make every tensor a dual number with tangent zero, and return the tangents to write to.

    The weights themselves become dual (and cease to be when the dual level is left): whatever
    refers to them sees it, tied weights and plain tensors as well. A tangent is given to one
    entry, by copying that entry's own value onto it; autograd then makes the rest of the tensor's
    tangent zeros. Copying the whole tensor would have its tangent twice for a while.
    """
    found = []
    for param in params:
        entry = param.tensor[(0,) * param.tensor.dim()]
        entry.copy_(forward_ad.make_dual(entry.clone(), torch.zeros_like(entry)))
        found.append(Param(param.name, forward_ad.unpack_dual(param.tensor).tangent, param.key))
    return found
