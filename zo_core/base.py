"""The words of the engine: what a step is made of, and what each part promises.

Reading order is the order of one step::

    seed -> Distribution -> Perturber -> Objective -> Estimator -> GradientEstimate -> UpdateRule

Symbols are the papers': ``theta`` the parameters, ``u`` (or ``z``) a random direction, ``eps`` the
perturbation scale, ``lr`` the learning rate, ``c`` the projected gradient (a scalar a direction).

How methods that are still to come fit these words is sketched in ``docs/design.md``.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Phase = Literal["anchor", "perturb", "forward", "backward", "update"]
"""What the engine can say it is doing. See :data:`Span`."""

Span = Callable[[Phase], AbstractContextManager[object]]
"""The one seam between the engine and whoever measures it: a context opened around each phase."""

Data = Literal["batch", "anchor"]
"""What an objective is evaluated on: this step's minibatch, or the anchor set (SVRG)."""

State = Any
"""What a part keeps between steps; it goes in and comes out, and belongs to that part alone."""

_NOTHING: AbstractContextManager[object] = nullcontext()


def no_span(phase: Phase) -> AbstractContextManager[object]:
    """Listen to no phase; the default of every ``span`` argument, at the cost of one call."""
    return _NOTHING


# --------------------------------------------------------------------------- parameters and seeds


def stable_key(name: str) -> int:
    """Return the 64-bit key of a tensor called ``name``: the same on every machine, for ever."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def derive_seed(seed: int, *path: int | str) -> int:
    """Mix a seed with a path such as ``(step, query)`` into a new 64-bit seed.

    A real hash, so that neighbouring runs, steps and queries share nothing: adding numbers up, as
    published code does, lets (16, 1) and (17, 0) meet. Zero and negative seeds are seeds like any.
    """
    text = "/".join(str(part) for part in (seed, *path))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True, eq=False)
class Param:
    """One trainable tensor, and the key under which noise is drawn for it."""

    name: str
    tensor: Tensor
    key: int  # 64 bits, from the name alone: freezing a neighbour does not move this one's noise


class Params(Sequence[Param]):
    """The trainable tensors in a fixed order.

    Names, and so keys, are part of the noise stream: the same names and shapes and the same seed
    give the same directions on any device. A tensor that stands under two names (tied weights)
    is held once, under the first.

    Raises:
        ValueError: no tensor at all, two tensors under one name, a tensor that is not floating
            point, or an expanded view. Tensors that share storage in other ways are the caller's
            to avoid: they would be moved twice.

    """

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Hold ``named`` (name, tensor) pairs in the order given."""
        seen: set[int] = set()
        items: list[Param] = []
        for name, tensor in named:
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            _refuse_untrainable(name, tensor)
            items.append(Param(name, tensor, stable_key(name)))
        if not items:
            raise ValueError("Expected at least one trainable tensor, got none.")
        if len({p.key for p in items}) != len(items):
            raise ValueError("Expected distinct tensor names, got a name twice.")
        self._items = tuple(items)

    @classmethod
    def of(cls, module: torch.nn.Module) -> Params:
        """Hold the parameters of ``module`` that require a gradient (frozen ones stay outside)."""
        return cls((n, p) for n, p in module.named_parameters() if p.requires_grad)

    def __getitem__(self, index: Any) -> Any:
        """Return one ``Param``, or a tuple of them for a slice."""
        return self._items[index]

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self._items)

    def __iter__(self) -> Iterator[Param]:
        """Walk the tensors in the fixed order."""
        return iter(self._items)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors alone, in order."""
        return tuple(p.tensor for p in self._items)

    @property
    def elements(self) -> int:
        """How many numbers are trained."""
        return sum(p.tensor.numel() for p in self._items)

    @property
    def bytes(self) -> int:
        """What they occupy, in bytes."""
        return sum(p.tensor.numel() * p.tensor.element_size() for p in self._items)


def _refuse_untrainable(name: str, tensor: Tensor) -> None:
    if not tensor.is_floating_point():
        raise ValueError(
            f"Tensor '{name}' is {tensor.dtype}; only floating-point tensors can be trained."
        )
    if any(n > 1 and s == 0 for n, s in zip(tensor.shape, tensor.stride(), strict=True)):
        raise ValueError(f"Tensor '{name}' is an expanded view; call .contiguous() on it first.")


# ------------------------------------------------------------------------------------- objectives


class Objective(Protocol):
    """The scalar to minimise, evaluated at the parameters *as they stand*.

    Calling it again without moving the parameters must give the same value: same minibatch, no
    dropout. It need not be differentiable (minus an accuracy, say) unless a first-order method
    asks: ``differentiable`` says so.
    """

    differentiable: bool

    def __call__(self, data: Data = "batch") -> Tensor:
        """Return the mean over ``data``, shape (), float32 or float64."""
        ...


class Closure:
    """An objective made of a function without arguments, as in ``torch.optim``.

    Args:
        loss: returns the mean over this step's minibatch, shape ().
        anchor: the same over the anchor set, for the methods that ask for one.
        differentiable: false where ``loss`` is a score without a gradient.

    """

    def __init__(
        self,
        loss: Callable[[], Tensor],
        anchor: Callable[[], Tensor] | None = None,
        *,
        differentiable: bool = True,
    ) -> None:
        """Wrap ``loss``."""
        self._loss = loss
        self._anchor = anchor
        self.differentiable = differentiable

    def __call__(self, data: Data = "batch") -> Tensor:
        """Evaluate on ``data``; ValueError where no anchor set was given."""
        if data == "batch":
            return self._loss()
        if self._anchor is None:
            raise ValueError("This method evaluates an anchor set; pass Closure(..., anchor=...).")
        return self._anchor()


class NonFiniteLoss(ArithmeticError):
    """A loss came out as NaN or infinity. It is raised, never averaged away or shown as zero."""


def finite(loss: Tensor) -> float:
    """Return ``loss``, shape (), as a float.

    Raises:
        NonFiniteLoss: it is NaN or infinite.
        ValueError: it is not one number.

    """
    if loss.numel() != 1:
        raise ValueError(
            f"Expected a loss of shape (), got {tuple(loss.shape)}; average it first."
        )
    value = float(loss)
    if not math.isfinite(value):
        raise NonFiniteLoss(
            f"The loss is {value}. The run diverged: lower lr, or eps, or use a wider dtype."
        )
    return value


# --------------------------------------------------------------------------- directions, estimates


@dataclass(frozen=True)
class Term:
    """``coefficient`` times the direction of ``seed``."""

    seed: int
    coefficient: float


class Distribution(Protocol):
    """A law of random directions ``u`` with E[u u^T] = I on the trained entries.

    A frozen value. A direction is (distribution, seed) and is never stored as a tensor; one
    distribution is one file in ``zo_core/directions``.
    """

    @property
    def name(self) -> str:
        """Name, as in records and on plots."""
        ...

    def add_(self, params: Params, terms: Sequence[Term]) -> None:
        """Add ``sum_k coefficient_k u(seed_k)`` to ``params`` in one pass over the weights.

        The sum is formed in float32 (float64 for float64 weights) and rounded to the weights'
        dtype once. Costs one noise pass a term, and scratch that does not grow with the model.
        """
        ...


def merge(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Add up the coefficients of equal seeds, and drop what cancels to zero."""
    total: dict[int, float] = {}
    for t in terms:
        total[t.seed] = total.get(t.seed, 0.0) + t.coefficient
    return tuple(Term(s, c) for s, c in total.items() if c != 0.0)


@dataclass(frozen=True)
class GradientEstimate:
    """A whole zeroth-order gradient as a value: ``g = sum_k c_k u(seed_k)``.

    A few numbers: it can be logged, sent over a wire, and replayed. Coefficients are exactly
    representable in float32, so that a log of four bytes a step loses nothing.
    """

    distribution: Distribution
    terms: tuple[Term, ...]
    losses: tuple[float, ...]  # in the order seen; losses of *perturbed* points, not of theta

    def __post_init__(self) -> None:
        """Refuse coefficients that a float32 log would change."""
        for term in self.terms:
            if term.coefficient != float32(term.coefficient):
                raise ValueError(f"Coefficient {term.coefficient!r} is not a float32 number.")


def float32(value: float) -> float:
    """Round to the nearest float32 number."""
    return float(torch.tensor(value, dtype=torch.float32))


# ------------------------------------------------------------------------------------------- parts


@dataclass(frozen=True)
class Cost:
    """What a part declares that one step costs on given parameters. Planners add it up.

    Bytes are those beside the parameters and the objective's own activations.
    """

    queries: int = 0  # evaluations of the objective; a first-order step has one
    backwards: int = 0  # backward passes
    noise_passes: int = 0  # times that noise is generated for every trained entry
    state_bytes: int = 0  # kept between steps
    scratch_bytes: int = 0  # at most alive during a step: gradients, temporaries

    def __add__(self, other: Cost) -> Cost:
        """Add two parts of one step that run in turn: scratch is the larger of the two."""
        return Cost(
            self.queries + other.queries,
            self.backwards + other.backwards,
            self.noise_passes + other.noise_passes,
            self.state_bytes + other.state_bytes,
            max(self.scratch_bytes, other.scratch_bytes),
        )


Point = Sequence[Term]
"""A place to look from: theta plus a short sum of directions. The empty point is theta itself."""


Moved = Point | None
"""What an update added to theta, as terms; None where it is not a sum of the step's directions."""


class Perturber(Protocol):
    """How ``theta + sum c u`` comes to be while an objective looks at it."""

    def losses(
        self,
        params: Params,
        objective: Objective,
        distribution: Distribution,
        points: Sequence[Point],
        *,
        data: Data = "batch",
        span: Span = no_span,
    ) -> list[float]:
        """Return the objective at each point, in order; theta is left as found (up to drift).

        Theta is put back when the objective raises as well.

        Raises:
            NonFiniteLoss: an evaluation was NaN or infinite.

        """
        ...


class Estimator(Protocol):
    """Looks at the objective around theta and returns a gradient estimate; theta is as found."""

    def init(self, params: Params) -> State:
        """Return the state before the first step."""
        ...

    def directions(self, params: Params, seed: int, state: State) -> tuple[Distribution, State]:
        """Fix the distribution of one step, from the weights as they stand unperturbed.

        All that an estimate does without looking at the objective: masks are computed here,
        lazily sampled factors are renewed here. A replay calls it where a live step does.
        """
        ...

    def estimate(
        self, params: Params, objective: Objective, seed: int, state: State, span: Span = no_span
    ) -> tuple[GradientEstimate, State]:
        """Return the estimate drawn from ``seed``, and the next state."""
        ...

    def moved(self, state: State, by: Moved) -> State:
        """Take note of how the update moved theta (an anchor walks back along it)."""
        ...

    def cost(self, params: Params) -> Cost:
        """Declare the cost of one estimate, without allocating."""
        ...


class UpdateRule(Protocol):
    """Moves theta along an estimate."""

    def init(self, params: Params) -> State:
        """Return the state before the first step."""
        ...

    def apply_(
        self, params: Params, estimate: GradientEstimate, state: State, lr: float
    ) -> tuple[State, Moved]:
        """Change ``params`` in place; return the next state and what was added to theta."""
        ...

    def cost(self, params: Params) -> Cost:
        """Declare the cost of one update, without allocating."""
        ...


@dataclass(frozen=True)
class StepInfo:
    """What one step saw and did."""

    losses: tuple[float, ...]
    queries: int  # equals the calls of the objective
    backwards: int = 0
    estimate: GradientEstimate | None = None  # None for a first-order step


class Method(Protocol):
    """One way to fine-tune, named as in its paper; a file of ``zo_core/methods``."""

    @property
    def needs_gradient(self) -> bool:
        """Whether the objective is run with autograd, in training mode."""
        ...

    def init(self, params: Params) -> State:
        """Return the state before the first step; it allocates no more than ``cost`` declares."""
        ...

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
        """Take one step in place. ``seed`` decides everything random about it."""
        ...

    def cost(self, params: Params) -> Cost:
        """Declare the cost of a step on ``params``, without allocating."""
        ...
